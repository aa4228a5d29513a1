package etcdtest

import (
	"crypto/tls"
	"testing"

	"github.com/trikey/trikey/internal/testca"
)

// Files are PEM files of certificates: of a CA, of etcd, and of its clients.
type Files struct {
	*testca.Authority
	CA                string
	Server, ServerKey string
	Client, ClientKey string
}

// NewFiles makes them, in the test's directory. They are good for loopback and the
// addresses given.
func NewFiles(t testing.TB, addresses ...string) *Files {
	t.Helper()
	ca, err := testca.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &Files{Authority: ca, CA: ca.File}
	if f.Server, f.ServerKey, err = ca.Issue("server", addresses...); err != nil {
		t.Fatal(err)
	}
	if f.Client, f.ClientKey, err = ca.Issue("client", addresses...); err != nil {
		t.Fatal(err)
	}
	return f
}

// client is the TLS side of a test's own client.
func (f *Files) client(t testing.TB) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(f.Client, f.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: f.Pool(), MinVersion: tls.VersionTLS13}
}
