package command

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	v1 "github.com/trikey/trikey/api/v1"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/internal/unixsock"
)

// admin calls the admin socket of the service on this host.
func (o *options) admin(ctx context.Context, method, path string, in, out any) error {
	cfg, err := o.load(nil)
	if err != nil {
		return err
	}
	client := unixsock.Client(cfg.AdminSocket())
	client.Transport = &receiptSaver{client.Transport, o.receipt}
	err = jsonhttp.Do(ctx, client, method, "http://admin/admin/v1/"+path, http.Header{}, in, out)
	if dial := (*net.OpError)(nil); errors.As(err, &dial) {
		return fault.Wrap(fault.Unavailable, err, "no service answers at %s: is it running (trikey serve)?", cfg.AdminSocket())
	}
	return err
}

// receiptSaver writes the receipts of changes to a file.
type receiptSaver struct {
	http.RoundTripper
	path string
}

// RoundTrip is that of http.RoundTripper.
func (s *receiptSaver) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := s.RoundTripper.RoundTrip(r)
	if err != nil || s.path == "" {
		return res, err
	}
	proof, err := base64.StdEncoding.DecodeString(res.Header.Get(v1.HeaderReceipt))
	if err != nil || len(proof) == 0 {
		return res, nil // it reads only, or the service's log says why there is none
	}
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.Write(proof)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "trikey: the change was made, but its receipt was not saved: %v\n", err)
	}
	return res, nil
}
