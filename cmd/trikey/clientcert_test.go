package main_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/sdk"
)

// identity is a client's key, and what may sign its certificates.
type identity struct {
	t      *testing.T
	key    *ecdsa.PrivateKey
	issuer *identity // nil: itself
	own    *x509.Certificate
	dir    string
}

func newIdentity(t *testing.T, issuer *identity) *identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &identity{t: t, key: key, issuer: issuer, dir: t.TempDir()}
}

// certificate makes a certificate, good for a client unless change makes it something else.
func (i *identity) certificate(change func(*x509.Certificate)) tls.Certificate {
	i.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "im"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	parent, signer := template, i.key
	if i.issuer != nil {
		parent, signer = i.issuer.own, i.issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &i.key.PublicKey, signer)
	if err != nil {
		i.t.Fatal(err)
	}
	if i.own, err = x509.ParseCertificate(der); err != nil {
		i.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: i.key, Leaf: i.own}
}

// files writes a certificate and its key.
func (i *identity) files(c tls.Certificate) (cert, key string) {
	i.t.Helper()
	raw, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: c.Certificate[0]}, "key.pem": {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(filepath.Join(i.dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			i.t.Fatal(err)
		}
	}
	return filepath.Join(i.dir, "cert.pem"), filepath.Join(i.dir, "key.pem")
}

// with is a client that shows a certificate; it keeps its connection, and its sessions
// beyond it.
func (s *site) with(c ...tls.Certificate) *http.Client {
	transport, _ := s.client.Transport.(*http.Transport)
	own := transport.Clone()
	own.TLSClientConfig.Certificates = c
	own.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	s.t.Cleanup(own.CloseIdleConnections)
	return &http.Client{Transport: own, Timeout: 30 * time.Second}
}

// asks gets the key's metadata by a client, with the AppKey and AppSecret where there are
// any.
func (s *site) asks(client *http.Client, credential ...string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.api+"/v1/keys/7", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(credential) == 2 {
		req.SetBasicAuth(credential[0], credential[1])
	}
	before := s.client
	defer func() { s.client = before }()
	s.client = client
	return s.send(req)
}

// TestClientCertificates: an app is known by the key of its certificate, by nothing else
// that the certificate says, and for as long as it is registered.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("other", "127.0.0.1/32", "keys=7;ops=encrypt")
	otherKey, otherSecret := s.key, s.secret
	s.createApp("im", "127.0.0.1/32", "keys=7;ops=encrypt,decrypt")
	own := newIdentity(t, nil)
	good := own.certificate(nil)
	file, _ := own.files(good)

	refused := func(what string, a answer, text string) {
		t.Helper()
		if a.status != 401 || a.code() != "unauthorized" || !strings.Contains(a.text("detail"), text) {
			t.Errorf("%s: %d %s", what, a.status, a.raw)
		}
	}
	refused("not registered", s.asks(s.with(good)), "add-cert")
	if a := s.asks(s.with(good), s.key, s.secret); a.status != 200 {
		t.Errorf("a certificate that is nobody's beside Basic: %d %s", a.status, a.raw)
	}
	s.ok("app", "add-cert", "im", file)
	client := s.with(good)
	if a := s.asks(client); a.status != 200 {
		t.Fatalf("registered: %d %s", a.status, a.raw)
	}
	if r := s.run("app", "add-cert", "other", file); r.code != 1 || !strings.Contains(r.err, `"im"`) {
		t.Errorf("the same key for two apps: %+v", r)
	}

	// What the certificate says of itself counts too.
	for what, bad := range map[string]struct {
		change func(*x509.Certificate)
		text   string
	}{
		"expired":       {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "expired"},
		"not yet valid": {func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, "not valid before"},
		"for servers":   {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, "clientAuth"},
	} {
		refused(what, s.asks(s.with(own.certificate(bad.change))), bad.text)
	}
	if a := s.asks(s.with(own.certificate(nil))); a.status != 200 {
		t.Errorf("renewed for the same key: %d %s", a.status, a.raw)
	}
	refused("the same names, another key", s.asks(s.with(newIdentity(t, nil).certificate(nil))), "add-cert")

	// With a credential in the request, that one decides.
	if a := s.asks(client, s.key, s.secret); a.status != 200 {
		t.Errorf("both of one app: %d %s", a.status, a.raw)
	}
	refused("a wrong secret beside a good certificate", s.asks(client, s.key, "wrong"), "AppSecret")
	refused("of two apps", s.asks(client, otherKey, otherSecret), "different apps")

	// The whitelist counts as for any other credential.
	s.ok("app", "deny-ip", "im", "127.0.0.1/32")
	if a := s.asks(client); a.code() != "ip_not_allowed" {
		t.Errorf("from elsewhere: %d %s", a.status, a.raw)
	}
	s.ok("app", "allow-ip", "im", "127.0.0.1/32")

	cert, key := own.files(good)
	im, err := sdk.New(sdk.Config{Addresses: []string{s.api}, CAFile: s.path("ca.pem"), CertFile: cert, KeyFile: key})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(im.Close)
	if _, err := im.Encrypt(t.Context(), sdk.EncryptRequest{Key: sdk.Index(7), Plaintext: []byte("x")}); err != nil {
		t.Errorf("the SDK: %v", err)
	}

	// Removed, it is of no use: on the connection that is open, and to a session that is
	// resumed.
	var shown struct{ Certificates []struct{ SPKI string } }
	s.ok("app", "show", "im", "-o", "json").json(t, &shown)
	if len(shown.Certificates) != 1 {
		t.Fatalf("app show: %+v", shown)
	}
	resumed := s.with(good)
	if a := s.asks(resumed); a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	resumed.CloseIdleConnections()
	s.ok("app", "remove-cert", "im", "--spki", shown.Certificates[0].SPKI)
	refused("removed, on an open connection", s.asks(client), "add-cert")
	refused("removed, by a session that is resumed", s.asks(resumed), "add-cert")
	cache, _ := resumed.Transport.(*http.Transport)
	state, err := tls.Dial("tcp", strings.TrimPrefix(s.api, "https://"), cache.TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	if !state.ConnectionState().DidResume {
		t.Error("no session was resumed: the test has shown nothing")
	}
	_ = state.Close()
	if r := s.run("app", "remove-cert", "im", file); r.code != 5 {
		t.Errorf("removed twice: %+v", r)
	}
}

// TestClientAuthority: with api.client_ca, who shows a certificate shows one of those
// authorities', or has no connection.
func TestClientAuthority(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	authority := newIdentity(t, nil)
	ca, _ := authority.files(authority.certificate(func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	}))
	s.configure(func(cfg *config.Config) { cfg.API.ClientCA = ca })
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=7;ops=encrypt")
	member := newIdentity(t, authority)
	good := member.certificate(nil)
	file, _ := member.files(good)
	s.ok("app", "add-cert", "im", file)
	if a := s.asks(s.with(good)); a.status != 200 {
		t.Errorf("of the authority: %d %s", a.status, a.raw)
	}
	if a := s.asks(s.with(), s.key, s.secret); a.status != 200 {
		t.Errorf("without a certificate: %d %s", a.status, a.raw)
	}
	stranger := newIdentity(t, nil)
	own := stranger.certificate(nil)
	file, _ = stranger.files(own)
	s.ok("app", "add-cert", "im", file)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.api+"/v1/keys/7", nil)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := s.with(own).Do(req); err == nil {
		_ = res.Body.Close()
		t.Errorf("of no authority, but registered: %s", res.Status)
	}
}

// TestOpenSSL is the matrix of versions and cipher suites, as a client that is not Go's
// sees it, with a client certificate and without.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=7;ops=encrypt")
	own := newIdentity(t, nil)
	cert, key := own.files(own.certificate(nil))
	s.ok("app", "add-cert", "im", cert)
	for _, row := range []struct {
		args string // of openssl s_client
		want string // in its output; "": no connection
	}{
		{"-tls1_3 -ciphersuites TLS_AES_128_GCM_SHA256", "TLSv1.3"},
		{"-tls1_3 -ciphersuites TLS_AES_256_GCM_SHA384", "TLSv1.3"},
		{"-tls1_3 -ciphersuites TLS_CHACHA20_POLY1305_SHA256", "TLSv1.3"},
		{"-tls1_3 -ciphersuites TLS_AES_128_CCM_SHA256", ""},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256", "TLSv1.2"},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES256-GCM-SHA384", "TLSv1.2"},
		{"-tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305", "TLSv1.2"},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA256", ""},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES256-SHA384", ""},
		{"-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA", ""},
		{"-tls1_2 -cipher AES128-GCM-SHA256", ""},
		{"-tls1_2 -cipher AES256-SHA", ""},
		{"-tls1_2 -cipher DHE-RSA-AES256-GCM-SHA384", ""},
		{"-tls1_1 -cipher DEFAULT@SECLEVEL=0", ""},
		{"-tls1 -cipher DEFAULT@SECLEVEL=0", ""},
	} {
		for _, certificate := range [][]string{nil, {"-cert", cert, "-key", key}} {
			args := append([]string{"s_client", "-connect", strings.TrimPrefix(s.api, "https://"), "-CAfile", s.path("ca.pem"), "-verify_return_error", "-ign_eof"}, strings.Fields(row.args)...)
			cmd := exec.CommandContext(t.Context(), "openssl", append(args, certificate...)...)
			cmd.Stdin = strings.NewReader("GET /v1/keys/7 HTTP/1.1\r\nHost: trikey\r\nConnection: close\r\n\r\n")
			out, err := cmd.CombinedOutput()
			text := string(out)
			if row.want == "" {
				if err == nil || strings.Contains(text, "HTTP/1.1") {
					t.Errorf("%s: connected\n%s", row.args, out)
				}
				continue
			}
			status := " 401 "
			if certificate != nil {
				status = " 200 "
			}
			if !strings.Contains(text, row.want) || !strings.Contains(text, "HTTP/1.1"+status) {
				t.Errorf("%s %v: %v, want%sby %s\n%s", row.args, certificate, err, status, row.want, out)
			}
		}
	}
}
