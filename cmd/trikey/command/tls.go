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
	pem, err := os.ReadFile(cfg.CA)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.BadConfig, "%s has no PEM certificate", cfg.CA)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}
