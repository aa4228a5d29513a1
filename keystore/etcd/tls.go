package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"net/url"
	"os"

	"github.com/trikey/trikey/internal/fault"
)

// tls checks the endpoints, and returns how they are talked to: nil is in the clear.
func (c Config) tls() (*tls.Config, error) {
	if len(c.Endpoints) == 0 {
		return nil, fault.New(fault.BadConfig, "no etcd member is named (store.endpoints); name all of them, as https://host:2379")
	}
	secure := 0
	for _, e := range c.Endpoints {
		u, err := url.Parse(e)
		switch {
		case err != nil || u.Host == "" || u.Port() == "" || u.Path != "" || u.User != nil:
			return nil, fault.New(fault.BadConfig, "store.endpoints: %q is not of the form https://host:port", e)
		case u.Scheme == "https":
			secure++
		case u.Scheme != "http":
			return nil, fault.New(fault.BadConfig, "store.endpoints: %q is neither https:// nor http://", e)
		case !loopback(u.Hostname()):
			return nil, fault.New(fault.BadConfig, "store.endpoints: %q is not on this host; use https:// there", e)
		}
	}
	if secure != 0 && secure != len(c.Endpoints) {
		return nil, fault.New(fault.BadConfig, "store.endpoints: some are https:// and some are http://; use https:// for all")
	}
	if secure == 0 {
		if c.CA+c.Cert+c.Key != "" {
			return nil, fault.New(fault.BadConfig, "store.endpoints are http://, but there are TLS files for them (store.ca, store.cert, store.key)")
		}
		return nil, nil
	}
	return c.files()
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}

func (c Config) files() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fault.Wrap(fault.BadConfig, err, "the certificate authority of etcd (store.ca)")
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.New(fault.BadConfig, "%s has no certificate in PEM (store.ca)", c.CA)
		}
	}
	if c.Cert == "" && c.Key == "" {
		return t, nil
	}
	// Read at each handshake: a certificate that was renewed needs no restart.
	t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fault.Wrap(fault.BadConfig, err, "the TLS certificate and key for etcd (store.cert, store.key)")
		}
		return &pair, nil
	}
	_, err := t.GetClientCertificate(nil)
	return t, err
}
