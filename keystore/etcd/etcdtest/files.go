package etcdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Files are PEM files of certificates: of a CA, of etcd on loopback, and of its clients.
type Files struct {
	CA                string
	Server, ServerKey string
	Client, ClientKey string
	authority         *x509.Certificate
	authorityKey      *ecdsa.PrivateKey
	dir               string
	addresses         []net.IP
	serial            int64
	from, until       time.Time
}

// NewFiles makes them, in the test's directory. They are good for loopback and the
// addresses given.
func NewFiles(t testing.TB, addresses ...string) *Files {
	t.Helper()
	ips := []net.IP{net.IPv4(127, 0, 0, 1)}
	for _, a := range addresses {
		ips = append(ips, net.ParseIP(a))
	}
	f := &Files{addresses: ips, dir: t.TempDir(), from: time.Now().Add(-time.Hour), until: time.Now().Add(24 * time.Hour)}
	f.CA, _ = f.issue(t, "ca")
	f.Server, f.ServerKey = f.issue(t, "server")
	f.Client, f.ClientKey = f.issue(t, "client")
	return f
}

// issue makes a certificate; the first one signs all.
func (f *Files) issue(t testing.TB, name string) (cert, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(f.serial), Subject: pkix.Name{CommonName: name}, NotBefore: f.from, NotAfter: f.until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: f.addresses, BasicConstraintsValid: true,
	}
	if f.authority == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
		f.authority, f.authorityKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, f.authority, &key.PublicKey, f.authorityKey)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return f.write(t, name+".pem", "CERTIFICATE", der), f.write(t, name+".key", "PRIVATE KEY", pkcs8)
}

func (f *Files) write(t testing.TB, name, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// client is the TLS side of a test's own client.
func (f *Files) client(t testing.TB) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(f.Client, f.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(f.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(raw)
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS13}
}
