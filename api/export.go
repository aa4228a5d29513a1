package api

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/hsm/keyexport"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
)

// receiverOf returns the DER of the public key in a PEM text.
func receiverOf(text string) ([]byte, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, fault.New(fault.BadRequest, "to_key: not one PEM block BEGIN PUBLIC KEY; openssl rsa -pubin -in FILE -RSAPublicKey_in makes one of a BEGIN RSA PUBLIC KEY")
	}
	return block.Bytes, nil
}

// receiverIn is the fingerprint of the public key in a request, for the audit log.
func receiverIn(value jsontext.Value) (string, error) {
	var text string
	if err := json.Unmarshal(value, &text); err != nil {
		return "", err
	}
	der, err := receiverOf(text)
	if err != nil {
		return "", err
	}
	to, err := keyexport.ParseReceiver(der)
	if err != nil {
		return "", err
	}
	return to.Fingerprint(), nil
}

// approveExport says which key goes out and to whom: who approves compares the fingerprint
// with the one that the receiver tells.
func approveExport(a admin, r *http.Request, body []byte) (string, error) {
	var in v1.ExportKey
	if err := jsonhttp.Unmarshal(body, &in); err != nil {
		return "", err
	}
	der, err := receiverOf(in.ToKey)
	if err != nil {
		return "", err
	}
	k, v, to, err := a.service.MayExport(chi.URLParam(r, "key"), in.Version, der)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("export version %d of key %d %q (%s) to whoever has the private key of the RSA-%d key %s; what leaves cannot be destroyed here any more",
		v.Version, k.Index, k.Name, v.KCV, to.Bits(), to.Fingerprint()), nil
}

func (a admin) exportKey(r *http.Request, in v1.ExportKey) (v1.ExportedKey, error) {
	der, err := receiverOf(in.ToKey)
	if err != nil {
		return v1.ExportedKey{}, err
	}
	k, v, _, err := a.service.MayExport(chi.URLParam(r, "key"), in.Version, der)
	switch {
	case err != nil:
		return v1.ExportedKey{}, err
	case grantOf(r.Context()) == nil && in.Confirm != v.KCV:
		return v1.ExportedKey{}, fault.New(fault.ApprovalRequired, "nobody else approves this here, so say that you mean it: give --yes-export "+
			"with the key check value of version %d (trikey key show %d)", v.Version, k.Index)
	}
	out, err := a.service.ExportKey(r.Context(), actor(r), chi.URLParam(r, "key"), v.Version, der)
	if err != nil {
		return v1.ExportedKey{}, err
	}
	return v1.ExportedKey{
		Index: out.Key.Index, Version: out.Version.Version, Algorithm: out.Key.Algorithm.String(), Purpose: out.Key.Purpose().String(),
		KCV: out.Version.KCV, Receiver: out.Receiver, Exported: out.Wrapped,
	}, nil
}
