package command

import (
	"crypto/tls"

	"github.com/trikey/trikey/internal/fault"
)

// withClients has a listener ask for client certificates, and take them where they are
// given: apps are known by the public keys of theirs. authorities is a PEM file; with one,
// a handshake with a certificate that none of them has signed fails. Without one anybody
// may show any certificate, and only registered ones mean something.
func withClients(c *tls.Config, authorities string) (*tls.Config, error) {
	c.ClientAuth = tls.RequestClientCert
	if authorities == "" {
		return c, nil
	}
	pool, err := poolOf(authorities)
	if err != nil {
		return nil, fault.Wrap(fault.BadConfig, err, "the authorities of client certificates (api.client_ca)")
	}
	c.ClientAuth, c.ClientCAs = tls.VerifyClientCertIfGiven, pool
	return c, nil
}
