package main_test

import (
	"crypto/tls"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

// handshake returns the certificate that a listener shows, and the version of TLS that both
// agree on.
func handshake(addr string, cfg *tls.Config) (leaf string, version uint16, err error) {
	cfg.InsecureSkipVerify, cfg.NextProtos = true, []string{"h2"}
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = c.Close() }()
	state := c.ConnectionState()
	return string(state.PeerCertificates[0].Raw), state.Version, nil
}

// TestTLS: the listeners of the service agree on TLS 1.3, or 1.2 with AEAD ciphers, and on
// nothing less; a new certificate is shown by all of them.
func TestTLS(t *testing.T) {
	t.Parallel()
	s, other := newSite(t), newSite(t)
	s.start()
	cfg := s.config()
	listeners := map[string]string{"api": cfg.API.Listen, "grpc": cfg.GRPC.Listen, "admin": cfg.Admin.Listen}
	first := map[string]string{}
	for name, addr := range listeners {
		leaf, version, err := handshake(addr, &tls.Config{})
		if err != nil || version != tls.VersionTLS13 {
			t.Fatalf("%s: TLS %#x, %v", name, version, err)
		}
		first[name] = leaf
		if _, version, err := handshake(addr, &tls.Config{MaxVersion: tls.VersionTLS12}); err != nil || version != tls.VersionTLS12 {
			t.Errorf("%s: TLS 1.2: %#x, %v", name, version, err)
		}
		for what, cfg := range map[string]*tls.Config{
			"TLS 1.1": {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
			"CBC":     {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
			"RSA":     {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
		} {
			if _, version, err := handshake(addr, cfg); err == nil {
				t.Errorf("%s: %s: agreed on %#x", name, what, version)
			}
		}
	}

	// A certificate that cannot be read changes nothing; a good one is shown after SIGHUP.
	if err := os.WriteFile(s.path("tls", "cert.pem"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.hangup()
	for name, addr := range listeners {
		if leaf, _, err := handshake(addr, &tls.Config{}); err != nil || leaf != first[name] {
			t.Errorf("%s: a bad certificate was taken: %v", name, err)
		}
	}
	for _, file := range []string{"cert.pem", "key.pem"} {
		raw, err := os.ReadFile(other.path("tls", file))
		if err := errors.Join(err, os.WriteFile(s.path("tls", file), raw, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	s.hangup()
	deadline := time.Now().Add(20 * time.Second)
	for name, addr := range listeners {
		for leaf := first[name]; leaf == first[name]; time.Sleep(10 * time.Millisecond) {
			var err error
			if leaf, _, err = handshake(addr, &tls.Config{}); err != nil {
				t.Fatal(err)
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the new certificate is not shown", name)
			}
		}
	}
}

func (s *site) hangup() {
	s.t.Helper()
	if err := s.serve.Process.Signal(syscall.SIGHUP); err != nil {
		s.t.Fatal(err)
	}
}
