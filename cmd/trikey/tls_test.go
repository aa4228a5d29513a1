package main_test

import (
	"crypto/tls"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// handshake returns the certificate that the service shows, and the
// version of TLS that both agree on.
func (s *site) handshake(cfg *tls.Config) (leaf string, version uint16, err error) {
	cfg.InsecureSkipVerify = true
	c, err := tls.Dial("tcp", strings.TrimPrefix(s.api, "https://"), cfg)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = c.Close() }()
	state := c.ConnectionState()
	return string(state.PeerCertificates[0].Raw), state.Version, nil
}

func TestTLS(t *testing.T) {
	t.Parallel()
	s, other := newSite(t), newSite(t)
	s.start()
	first, version, err := s.handshake(&tls.Config{})
	if err != nil || version != tls.VersionTLS13 {
		t.Fatalf("TLS %#x, %v", version, err)
	}
	if _, version, err := s.handshake(&tls.Config{MaxVersion: tls.VersionTLS12}); err != nil || version != tls.VersionTLS12 {
		t.Errorf("TLS 1.2: %#x, %v", version, err)
	}
	for name, cfg := range map[string]*tls.Config{
		"TLS 1.1": {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"CBC":     {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
		"RSA":     {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
	} {
		if _, version, err := s.handshake(cfg); err == nil {
			t.Errorf("%s: agreed on %#x", name, version)
		}
	}

	// A certificate that cannot be read changes nothing; a good one is shown after SIGHUP.
	if err := os.WriteFile(s.path("tls", "cert.pem"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.hangup()
	if leaf, _, err := s.handshake(&tls.Config{}); err != nil || leaf != first {
		t.Errorf("a bad certificate was taken: %v", err)
	}
	for _, file := range []string{"cert.pem", "key.pem"} {
		raw, err := os.ReadFile(other.path("tls", file))
		if err := errors.Join(err, os.WriteFile(s.path("tls", file), raw, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	s.hangup()
	for deadline := time.Now().Add(20 * time.Second); ; {
		leaf, _, err := s.handshake(&tls.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if leaf != first {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the new certificate is not shown")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *site) hangup() {
	s.t.Helper()
	if err := s.serve.Process.Signal(syscall.SIGHUP); err != nil {
		s.t.Fatal(err)
	}
}
