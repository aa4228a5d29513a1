package api

import (
	"net/http"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
)

// maxCensusBody is more than a census that fits a record.
const maxCensusBody = 1 << 20

func (a admin) saveCensus(r *http.Request, in kms.CensusOrder) (v1.Batch[kms.SavedCensus], error) {
	var err error
	switch {
	case in.Remove == (in.Census != nil):
		err = fault.New(fault.BadRequest, "census: give either a census or remove")
	case in.Remove:
		err = a.service.ForgetCensus(r.Context(), actor(r), in.Name)
	default:
		err = a.service.SaveCensus(r.Context(), actor(r), in.Name, *in.Census)
	}
	if err != nil {
		return v1.Batch[kms.SavedCensus]{}, err
	}
	return a.censuses(r, jsonhttp.None{})
}

func (a admin) censuses(r *http.Request, _ jsonhttp.None) (v1.Batch[kms.SavedCensus], error) {
	all, err := a.service.Censuses(r.Context())
	return v1.Batch[kms.SavedCensus]{Items: all}, err
}
