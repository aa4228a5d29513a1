package command

import (
	"crypto/tls"
	"crypto/x509"
	"os"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/internal/fault"
)

// tlsConfigOf trusts the configuration's authorities and no other.
func tlsConfigOf(cfg *config.Config) (*tls.Config, error) {
	pool, err := poolOf(cfg.CA)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// poolOf reads the authorities in a PEM file.
func poolOf(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.BadConfig, err, "the authority's certificate cannot be read")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.BadConfig, "%s has no PEM certificate", path)
	}
	return pool, nil
}
