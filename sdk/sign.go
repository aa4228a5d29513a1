package sdk

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/httpsig"
)

// signer signs each request, repetitions too, on its way out (RFC 9421).
type signer struct {
	*http.Transport
	key httpsig.Key
}

// RoundTrip sends a request with a signature.
func (s *signer) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil && r.Body != http.NoBody {
		defer func() { _ = r.Body.Close() }() // the copy is what is sent
		again, err := r.GetBody()
		if err == nil {
			body, err = io.ReadAll(again)
		}
		if err != nil {
			return nil, err
		}
	}
	signed := r.Clone(r.Context())
	if body != nil {
		signed.Body = io.NopCloser(bytes.NewReader(body))
	}
	if err := httpsig.Sign(signed, body, s.key, time.Now()); err != nil {
		return nil, err
	}
	return s.Transport.RoundTrip(signed)
}

// authorize adds the credential that a request itself carries, and returns it; "" where
// requests are signed, or the connection has a certificate.
func (c *Client) authorize(ctx context.Context, h http.Header) (string, error) {
	value, err := c.credentials.authorization(ctx)
	if value != "" {
		h.Set("Authorization", value)
	}
	return value, err
}

// certificates reads the client certificate, if there is one.
func (c Config) certificates() ([]tls.Certificate, error) {
	if c.CertFile == "" && c.KeyFile == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, fault.Wrap(fault.BadConfig, err, "sdk: the client certificate and its key (CertFile, KeyFile)")
	}
	return []tls.Certificate{pair}, nil
}

// errUnsigned is why a stream is refused before anything of it is read.
var errUnsigned = fault.New(fault.BadRequest, "sdk: a stream cannot be signed, because its digest is known at its end only; "+
	"use a client without Sign for streams")
