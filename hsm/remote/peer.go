package remote

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/trikey/trikey/internal/fault"
)

// pinPrefix begins the pin of a public key, as against a name.
const pinPrefix = "sha256:"

// Pin names a certificate's public key: sha256: and the hash of its SubjectPublicKeyInfo
// (RFC 7469, section 2.4) in hex. It stays when the certificate is renewed for the same
// key.
func Pin(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return pinPrefix + hex.EncodeToString(sum[:])
}

// CheckServices reports an entry of a list of services that can name none.
func CheckServices(services []string) error {
	if len(services) == 0 {
		return fault.New(fault.BadConfig, "machine.services: empty; name the services that may use the machine, each by a DNS name in its certificate or by sha256: "+
			"and the hash of its public key")
	}
	for _, s := range services {
		pin, pinned := strings.CutPrefix(s, pinPrefix)
		if raw, err := hex.DecodeString(pin); s == "" || pinned && (err != nil || len(raw) != sha256.Size) {
			return fault.New(fault.BadConfig, "machine.services: %q is neither a name nor sha256: and 64 hexadecimal digits", s)
		}
	}
	return nil
}

// Mutual makes of a server's configuration one that takes the services of a list, with
// certificates of certain authorities, and nobody else.
func Mutual(server *tls.Config, authorities *x509.CertPool, services []string) *tls.Config {
	c := server.Clone()
	c.MinVersion, c.ClientAuth, c.ClientCAs = tls.VersionTLS13, tls.RequireAndVerifyClientCert, authorities
	c.VerifyConnection = func(state tls.ConnectionState) error {
		leaf := state.PeerCertificates[0] // there is one, or it would not have come here
		if slices.Contains(services, Pin(leaf)) || slices.ContainsFunc(leaf.DNSNames, func(name string) bool { return slices.Contains(services, name) }) {
			return nil
		}
		return fault.New(fault.Forbidden, "the certificate of %q (%s) is of none of machine.services", leaf.Subject.CommonName, Pin(leaf))
	}
	return c
}
