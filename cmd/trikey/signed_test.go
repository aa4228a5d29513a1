package main_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/httpsig"
	"github.com/trikey/trikey/keystore/etcd/etcdtest"
	"github.com/trikey/trikey/sdk"
)

// signed is a request that the site's app has signed, for a service by the name of host.
func (s *site) signed(host, method, path string, body []byte, at time.Time) *http.Request {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.api+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if host != "" {
		req.Host = host
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if err := httpsig.Sign(req, body, httpsig.Key{ID: s.key, Secret: []byte(s.secret)}, at); err != nil {
		s.t.Fatal(err)
	}
	return req
}

// again is the same request once more, as whoever has recorded it sends it: to a service
// at the same place, or at another.
func (s *site) again(req *http.Request, body []byte) *http.Request {
	s.t.Helper()
	copied, err := http.NewRequestWithContext(s.t.Context(), req.Method, s.api+req.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if copied.Host = req.Host; copied.Host == "" {
		copied.Host = req.URL.Host
	}
	copied.Header = req.Header.Clone()
	return copied
}

var hello = []byte(`{"plaintext":"aGVsbG8="}`)

// TestSignedRequests: what is signed is done, once; what was altered, recorded or mixed with
// something else is not.
func TestSignedRequests(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=7;ops=encrypt,decrypt")
	const path = "/v1/keys/7/encrypt"
	now := time.Now()

	first := s.signed("", http.MethodPost, path, hello, now)
	if a := s.send(first); a.status != 200 {
		t.Fatalf("signed: %d %s", a.status, a.raw)
	}
	if a := s.send(s.signed("", http.MethodGet, "/v1/keys/7", nil, now)); a.status != 200 {
		t.Errorf("signed, without a body: %d %s", a.status, a.raw)
	}
	transport, _ := s.client.Transport.(*http.Transport)
	h2 := transport.Clone()
	h2.ForceAttemptHTTP2 = true
	res, err := (&http.Client{Transport: h2, Timeout: 30 * time.Second}).Do(s.signed("", http.MethodPost, path, hello, now))
	if err != nil {
		t.Fatal(err)
	}
	if _ = res.Body.Close(); res.StatusCode != 200 || res.ProtoMajor != 2 {
		t.Errorf("signed, over HTTP/2: %s %s", res.Proto, res.Status)
	}
	h2.CloseIdleConnections()
	refused := func(what string, req *http.Request, code string) {
		t.Helper()
		s.ok("app", "unlock", "im") // more of these than anybody may try
		a := s.send(req)
		if a.status != 401 || a.code() != code || a.header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: %d %s", what, a.status, a.raw)
		}
	}
	refused("once more", s.again(first, hello), "replay")
	refused("another body", s.again(s.signed("", http.MethodPost, path, hello, now), []byte(`{"plaintext":"aGVsbG9="}`)), "signature_invalid")
	refused("an hour ago", s.signed("", http.MethodPost, path, hello, now.Add(-time.Hour)), "signature_invalid")
	refused("in an hour", s.signed("", http.MethodPost, path, hello, now.Add(time.Hour)), "signature_invalid")
	both := s.signed("", http.MethodPost, path, hello, now)
	both.SetBasicAuth(s.key, s.secret)
	refused("with Basic", both, "unauthorized")
	stripped := s.signed("", http.MethodPost, path, hello, now)
	stripped.Header.Del("Signature")
	refused("without its signature", stripped, "signature_invalid")
	stripped = s.signed("", http.MethodPost, path, hello, now)
	stripped.Header.Del("Signature-Input")
	stripped.SetBasicAuth(s.key, s.secret)
	refused("half a signature beside Basic", stripped, "unauthorized")
	twice := s.signed("", http.MethodPost, path, hello, now)
	twice.Header.Del("Signature")
	twice.Header.Del("Signature-Input")
	twice.Header["Authorization"] = []string{"Basic eDp5", "Basic eDp5"}
	s.wantError(s.send(twice), http.StatusBadRequest, "bad_request")
	stream := s.signed("", http.MethodPost, "/v1/stream/7/encrypt", hello, now)
	refused("a stream", stream, "signature_invalid")

	real := s.key
	s.key = "akaaaaaaaaaaaaaaaa"
	refused("an AppKey that nobody has", s.signed("", http.MethodPost, path, hello, now), "signature_invalid")
	s.key = real
	s.ok("app", "deny-ip", "im", "127.0.0.1/32")
	if a := s.send(s.signed("", http.MethodPost, path, hello, now)); a.code() != "ip_not_allowed" {
		t.Errorf("from elsewhere: %d %s", a.status, a.raw)
	}
	s.ok("app", "allow-ip", "im", "127.0.0.1/32")

	// The older secret signs too, until it is dropped; what is told of it shows that it was.
	old := s.secret
	var rotated struct {
		AppSecret string `json:"app_secret"`
	}
	s.ok("app", "rotate-secret", "im", "--expires", "7d", "-o", "json").json(t, &rotated)
	if a := s.send(s.signed("", http.MethodPost, path, hello, now)); a.status != 200 {
		t.Errorf("by the older secret: %d %s", a.status, a.raw)
	}
	var app struct {
		ValidSecrets []struct{ Used, Expires time.Time } `json:"valid_secrets"`
		Warnings     []string
	}
	s.ok("app", "show", "im", "-o", "json").json(t, &app)
	if v := app.ValidSecrets; len(v) != 2 || v[0].Used.IsZero() || !v[1].Used.IsZero() || v[1].Expires.IsZero() || len(app.Warnings) != 1 {
		t.Errorf("app show: %+v", app)
	}
	if r := s.ok("app", "list"); !strings.Contains(r.out, "Warning: im: secret 2 expires") {
		t.Errorf("app list: %s", r.out)
	}
	s.ok("app", "drop-secret", "im")
	refused("by the secret that was dropped", s.signed("", http.MethodPost, path, hello, now), "signature_invalid")
	s.secret = rotated.AppSecret
	if a := s.send(s.signed("", http.MethodPost, path, hello, now)); a.status != 200 {
		t.Errorf("by the newer secret: %d %s", a.status, a.raw)
	}
	if r := s.run("app", "drop-secret", "im"); r.code == 0 || !strings.Contains(r.err, "rotate-secret") {
		t.Errorf("the only secret was dropped: %+v", r)
	}
	raw, err := http.Get(s.ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	_, err = text.ReadFrom(raw.Body)
	_ = raw.Body.Close()
	if err != nil || !strings.Contains(text.String(), `trikey_app_secret_expires_timestamp_seconds{app="im",secret="2"}`) {
		t.Errorf("the metrics have no end of the secret: %v", err)
	}

	// After kill -9 a recorded request is as little use as before.
	last := s.signed("", http.MethodPost, path, hello, time.Now())
	if a := s.send(last); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	s.kill()
	s.open()
	refused("once more, after the service was killed", s.again(last, hello), "replay")
	for _, secret := range []string{old, s.secret} {
		if strings.Contains(s.log.String(), secret) {
			t.Error("a secret is in the log")
		}
	}
}

// TestReplayOnAnotherNode: what one node has taken no other takes.
func TestReplayOnAnotherNode(t *testing.T) {
	t.Parallel()
	files := etcdtest.NewFiles(t)
	c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Installed(t), TLS: files})
	a := newSite(t)
	a.storeIn(c, files)
	a.open()
	b := a.join()
	a.ok("key", "create", "--index", "1", "--name", "first")
	a.createApp("im", "127.0.0.1/32", "keys=1;ops=encrypt")
	b.start()
	if r := b.unseal(a.cards()...); r.code != 0 {
		t.Fatalf("the second node: %+v\n%s", r, b.log)
	}
	b.use(a)
	const path, name = "/v1/keys/1/encrypt", "trikey.example:7443" // both nodes' name
	for range 20 {
		req := a.signed(name, http.MethodPost, path, hello, time.Now())
		other := b.again(req, hello)
		answers := make(chan answer, 2)
		go func() { answers <- a.send(req) }()
		go func() { answers <- b.send(other) }()
		x, y := <-answers, <-answers
		if x.status > y.status {
			x, y = y, x
		}
		if x.status != 200 || y.code() != "replay" {
			t.Errorf("both nodes at the same time: %d and %d %s", x.status, y.status, y.raw)
		}
	}
	// Where the store is away nobody knows, and nothing that is signed is taken.
	req := a.signed(name, http.MethodPost, path, hello, time.Now())
	if x := a.send(req); x.status != 200 {
		t.Errorf("%d %s", x.status, x.raw)
	}
	c[0].Kill()
	if y := b.send(b.again(req, hello)); y.code() != "replay" && y.code() != "unavailable" {
		t.Errorf("without the store: %d %s", y.status, y.raw)
	}
	if x := a.send(a.signed(name, http.MethodPost, path, hello, time.Now())); x.code() != "unavailable" {
		t.Errorf("signed, without the store: %d %s", x.status, x.raw)
	}
	if x := a.post(path, hello); x.status != 200 {
		t.Errorf("Basic, without the store: %d %s", x.status, x.raw)
	}
}

// TestNodeClient: a client that we did not write, in another language, is understood.
func TestNodeClient(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("testdata", "node")
	if _, err := os.Stat(filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal("the Node client's library is not installed: make test-deps")
	}
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=7;ops=encrypt,decrypt,reencrypt-from,reencrypt-to")
	secret := s.path("secret")
	if err := os.WriteFile(secret, []byte(s.secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	call := func(path string, body ...string) (a answer) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "node", append([]string{filepath.Join(dir, "call.cjs"), s.api + path, s.key, secret, s.path("ca.pem")}, body...)...).Output()
		var got struct {
			Status int
			Body   object
		}
		if err == nil {
			err = json.Unmarshal(out, &got)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return answer{status: got.Status, body: got.Body, raw: out}
	}
	sealed := call("/v1/keys/7/encrypt", string(hello))
	if sealed.status != 200 || !s.decrypts(sealed.text("ciphertext"), "aGVsbG8=") {
		t.Errorf("encrypt: %s", sealed.raw)
	}
	if a := call("/v1/random?bytes=16"); a.status != 200 {
		t.Errorf("a query: %s", a.raw)
	}
	if err := os.WriteFile(secret, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if a := call("/v1/keys/7/encrypt", string(hello)); a.code() != "signature_invalid" {
		t.Errorf("by another secret: %s", a.raw)
	}
}

// TestSDKSigns: the Go SDK with Sign.
func TestSDKSigns(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=7;ops=encrypt,decrypt")
	client, err := sdk.New(sdk.Config{Addresses: []string{s.api}, AppKey: s.key, AppSecret: s.secret, CAFile: s.path("ca.pem"), Sign: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	for range 3 {
		sealed, err := client.Encrypt(t.Context(), sdk.EncryptRequest{Key: sdk.Index(7), Plaintext: []byte("hello")})
		if err != nil {
			t.Fatal(err)
		}
		opened, err := client.Decrypt(t.Context(), sdk.DecryptRequest{Ciphertext: sealed.Ciphertext})
		if err != nil || string(opened.Plaintext) != "hello" {
			t.Errorf("%q, %v", opened.Plaintext, err)
		}
	}
	if _, err := client.Key(t.Context(), sdk.Index(7)); err != nil {
		t.Error(err)
	}
	if _, err := client.EncryptStream(t.Context(), sdk.StreamRequest{Key: sdk.Index(7)}, strings.NewReader("x")); err == nil || !strings.Contains(err.Error(), "without Sign") {
		t.Errorf("a stream: %v", err)
	}
}
