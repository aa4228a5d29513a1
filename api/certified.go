package api

import (
	"crypto/sha256"
	"crypto/x509"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/auth"
)

// certificate returns the client's certificate on the request's connection, nil when there
// is none. The handshake has shown that the client has its private key; a resumed session
// carries it on, so that it is looked at anew in every request.
func certificate(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return r.TLS.PeerCertificates[0]
}

func spkiOf(c *x509.Certificate) auth.SPKI { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// certified returns the app of the connection's certificate.
func (s *server) certified(r *http.Request, apps *auth.Apps, from netip.Addr) (*auth.Caller, error) {
	c := certificate(r)
	caller, err := apps.AuthenticatePin(spkiOf(c), from)
	if err != nil {
		return caller, err
	}
	return caller, usable(c, s.now())
}

// usable reports whether a certificate may be used now, and by a client (RFC 5280,
// sections 4.1.2.5 and 4.2.1.12).
func usable(c *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(c.NotBefore):
		return fault.New(fault.Unauthorized, "the client certificate is not valid before %s", c.NotBefore.UTC().Format(time.RFC3339))
	case now.After(c.NotAfter):
		return fault.New(fault.Unauthorized, "the client certificate expired at %s; renew it for the same key, and nothing else changes", c.NotAfter.UTC().Format(time.RFC3339))
	}
	restricted := len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0
	client := slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
	if restricted && !client {
		return fault.New(fault.Unauthorized, "the client certificate is not for clients; its extended key usage must have clientAuth")
	}
	return nil
}

// sameApp refuses a request by one app over the connection of another. A certificate that
// is no app's, as those of a service mesh, says nothing.
func sameApp(r *http.Request, apps *auth.Apps, caller *auth.Caller) error {
	c := certificate(r)
	if c == nil {
		return nil
	}
	if app := apps.AppOf(spkiOf(c)); app != "" && app != caller.Name {
		return fault.New(fault.Unauthorized, "the client certificate and the request's credential are of different apps; use one of them")
	}
	return nil
}
