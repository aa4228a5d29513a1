// Package testca makes certificates for tests and benchmarks: an authority whose key is in
// memory only, and what it signs, as the PEM files that a configuration names.
package testca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Authority signs certificates. File is the PEM file of its own.
type Authority struct {
	File string

	dir    string
	root   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

// New makes an authority with files in a directory.
func New(dir string) (*Authority, error) {
	a := &Authority{dir: dir, root: &x509.Certificate{
		Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	var err error
	if a.File, _, err = a.issue("ca", a.root); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(a.File)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	a.root, err = x509.ParseCertificate(block.Bytes)
	return a, err
}

// Issue makes a certificate for 127.0.0.1, localhost, a name and other addresses, for
// servers and clients.
func (a *Authority) Issue(name string, addresses ...string) (certFile, keyFile string, err error) {
	ips := []net.IP{net.IPv4(127, 0, 0, 1)}
	for _, address := range addresses {
		ips = append(ips, net.ParseIP(address))
	}
	return a.issue(name, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{name, "localhost"}, IPAddresses: ips,
	})
}

func (a *Authority) issue(name string, template *x509.Certificate) (certFile, keyFile string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	if a.key == nil {
		a.key = key
	}
	a.serial++
	template.SerialNumber, template.BasicConstraintsValid = big.NewInt(a.serial), true
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, &key.PublicKey, a.key)
	if err != nil {
		return "", "", err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", err
	}
	certFile, keyFile = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	return certFile, keyFile, errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600),
	)
}

// Pool has the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.root)
	return pool
}

// TLS makes a certificate and returns a configuration with it, which trusts the authority
// at both ends.
func (a *Authority) TLS(name string) (*tls.Config, error) {
	certFile, keyFile, err := a.Issue(name)
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: a.Pool(), ClientCAs: a.Pool(), MinVersion: tls.VersionTLS13}, nil
}
