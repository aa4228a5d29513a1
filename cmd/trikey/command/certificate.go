package command

import (
	"crypto/tls"
	"sync/atomic"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/internal/fault"
)

// certificate is a listener's, read anew when it has changed.
type certificate struct {
	section   string // of the configuration
	cert, key string
	current   atomic.Pointer[tls.Certificate]
}

// certificates are those of all listeners: the API's own, which the others have too unless
// they are given one.
type certificates struct {
	api, grpc, admin, custodians *certificate
	all                          []*certificate
}

func newCertificates(cfg *config.Config) (c certificates, err error) {
	if c.api, err = newCertificate("api", cfg.API.Cert, cfg.API.Key); err != nil {
		return c, err
	}
	c.all = []*certificate{c.api}
	for _, of := range []struct {
		section, listen, cert, key string
		is                         **certificate
	}{
		{"grpc", cfg.GRPC.Listen, cfg.GRPC.Cert, cfg.GRPC.Key, &c.grpc},
		{"admin", cfg.Admin.Listen, cfg.Admin.Cert, cfg.Admin.Key, &c.admin},
		{"machine.custodians", cfg.Machine.Custodians.Listen, cfg.Machine.Custodians.Cert, cfg.Machine.Custodians.Key, &c.custodians},
	} {
		if *of.is = c.api; of.listen == "" || of.cert == "" {
			continue
		}
		if *of.is, err = newCertificate(of.section, of.cert, of.key); err != nil {
			return c, err
		}
		c.all = append(c.all, *of.is)
	}
	return c, nil
}

func newCertificate(section, cert, key string) (*certificate, error) {
	c := &certificate{section: section, cert: cert, key: key}
	return c, c.load()
}

func (c *certificate) load() error {
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fault.Wrap(fault.BadConfig, err, "the TLS certificate and key (%[1]s.cert, %[1]s.key)", c.section)
	}
	c.current.Store(&pair)
	return nil
}

// config allows TLS 1.3, and 1.2 with forward secrecy and authenticated ciphers only.
func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil },
	}
}
