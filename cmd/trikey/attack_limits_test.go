package main_test

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/cmd/trikey/config"
)

// from has the site's calls come from another address of loopback.
func (s *site) from(last byte) {
	s.t.Helper()
	transport, _ := s.client.Transport.(*http.Transport)
	elsewhere := transport.Clone()
	elsewhere.DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, last)}}).DialContext
	s.client.CloseIdleConnections()
	s.client.Transport = elsewhere
}

func (s *site) once() answer {
	s.t.Helper()
	return s.post("/v1/keys/7/encrypt", object{"plaintext": ""})
}

// wantLater is an error 429 that says when to come back.
func (s *site) wantLater(a answer, code string) {
	s.t.Helper()
	s.wantError(a, 429, code)
	if n, err := strconv.Atoi(a.header.Get("Retry-After")); err != nil || n < 1 || n > 900 {
		s.t.Errorf("Retry-After: %q", a.header.Get("Retry-After"))
	}
}

// metric returns the value of a metric, 0 where it is not there.
func (s *site) metric(name string) float64 {
	s.t.Helper()
	for line := range strings.Lines(s.metrics()) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				s.t.Fatal(line)
			}
			return n
		}
	}
	return 0
}

// TestRateLimit: an app is held to its rate by items, whether single or in a batch.
func TestRateLimit(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	items := func(n int) object {
		list := make([]object, n)
		for i := range list {
			list[i] = object{"key": 7, "plaintext": ""}
		}
		return object{"items": list}
	}
	for range 20 { // without a limit nobody is held to one
		if a := s.post("/v1/batch/encrypt", items(1000)); a.status != 200 {
			t.Fatalf("without a limit: %s", a.raw)
		}
	}
	im := [2]string{s.key, s.secret}
	s.createApp("other", "127.0.0.1/32", "keys=7;ops=encrypt")
	other := [2]string{s.key, s.secret}
	s.key, s.secret = im[0], im[1]
	s.ok("app", "limit", "im", "items=0.01/s,burst=20")
	if a := s.post("/v1/batch/encrypt", items(15)); a.status != 200 {
		t.Fatalf("15 of 20: %s", a.raw)
	}
	s.wantLater(s.post("/v1/batch/encrypt", items(6)), "rate_limited")
	for range 5 {
		if a := s.once(); a.status != 200 {
			t.Errorf("the rest of 20: %s", a.raw)
		}
	}
	s.wantLater(s.once(), "rate_limited")
	s.key, s.secret = other[0], other[1]
	if a := s.once(); a.status != 200 {
		t.Errorf("another app: %s", a.raw)
	}
	s.key, s.secret = im[0], im[1]
	if s.metric(`trikey_rate_limited_total{by="app"}`) != 2 {
		t.Error("the metrics do not tell of two refusals")
	}
	if r := s.run("app", "limit", "im", "items=fast"); r.code != 2 {
		t.Errorf("a rate that is none: %+v", r)
	}
	if r := s.ok("app", "limit", "im", "default"); strings.Contains(r.out, "limit ") {
		t.Errorf("the limit is not taken away:\n%s", r.out)
	}
	if a := s.once(); a.status != 200 {
		t.Errorf("without a limit again: %s", a.raw)
	}
}

// TestKeyAndAddressLimit: in a batch only the items of the busy key are refused; and an
// address is held to its rate before it is known who calls.
func TestKeyAndAddressLimit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open("TRIKEY_LIMITS_KEY=items=0.01/s,burst=2", "TRIKEY_LIMITS_ADDRESS=items=0.01/s,burst=30")
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.ok("key", "create", "--index", "8", "--name", "calm")
	s.createApp("im", "127.0.0.0/8", "keys=1-99;ops="+allOps)
	a := s.post("/v1/batch/encrypt", `{"items":[{"key":7,"plaintext":""},{"key":7,"plaintext":""},{"key":7,"plaintext":""},{"key":8,"plaintext":""}]}`)
	results, _ := a.body["items"].([]any)
	if a.status != 200 || len(results) != 4 {
		t.Fatal(string(a.raw))
	}
	for i, r := range results {
		failed := strings.Contains(fmt.Sprint(r), "rate_limited")
		if failed != (i == 2) {
			t.Errorf("item %d: %v", i, r)
		}
	}
	s.wantLater(s.once(), "rate_limited")
	for range 40 {
		a = s.call(http.MethodGet, "/v1/keys/7", nil)
	}
	s.wantLater(a, "rate_limited")
	s.from(2)
	if a := s.call(http.MethodGet, "/v1/keys/7", nil); a.status != 200 {
		t.Errorf("another address: %s", a.raw)
	}
}

// TestLockout: who guesses is refused without learning anything, and nobody else is.
func TestLockout(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.0/29", "keys=7;ops=encrypt") // 127.0.0.0 to 7
	key, secret := s.key, s.secret
	s.from(2)
	guess := func(k string) answer {
		t.Helper()
		s.key, s.secret = k, "guess"
		a := s.once()
		s.key, s.secret = key, secret
		return a
	}
	unknown := "akaaaaaaaaaaaaaaaa"
	for range 5 {
		s.wantError(guess(key), 401, "unauthorized")
		s.wantError(guess(unknown), 401, "unauthorized")
	}
	right, wrong, nobody := s.once(), guess(key), guess(unknown)
	for _, a := range []answer{right, wrong, nobody} {
		s.wantLater(a, "locked_out")
		delete(a.body, "request_id")
		for _, name := range []string{"X-Request-Id", "Date", "Retry-After"} {
			a.header.Del(name)
		}
	}
	if fmt.Sprint(right.body, right.header) != fmt.Sprint(wrong.body, wrong.header) || fmt.Sprint(right.body, right.header) != fmt.Sprint(nobody.body, nobody.header) {
		t.Errorf("one who is locked out can tell what was right:\n%s\n%s\n%s", right.raw, wrong.raw, nobody.raw)
	}
	if a := s.post("/oauth2/token", "grant_type=client_credentials", "Content-Type", "application/x-www-form-urlencoded"); a.status != 429 || a.header.Get("Retry-After") == "" {
		t.Errorf("a token for who is locked out: %d %s", a.status, a.raw)
	}
	// From another address of the app it goes on, whatever a stranger does elsewhere.
	s.from(9)
	for range 8 {
		guess(key)
	}
	s.wantLater(s.once(), "locked_out")
	s.from(3)
	if a := s.once(); a.status != 200 {
		t.Errorf("from another address: %s", a.raw)
	}
	// Who tries many AppKeys is refused any other; but who has got in from there is not.
	for i := range 5 {
		s.wantError(guess("akbbbbbbbbbbbbbbb"+string(rune('a'+i))), 401, "unauthorized")
	}
	s.wantLater(guess("akccccccccccccccca"), "locked_out")
	if a := s.once(); a.status != 200 {
		t.Errorf("the app beside one who guesses: %s", a.raw)
	}
	s.from(2)
	s.ok("app", "unlock", "im")
	if a := s.once(); a.status != 200 {
		t.Errorf("unlocked: %s", a.raw)
	}
	if s.metric("trikey_lockouts_total") < 4 || s.metric(`trikey_auth_failures_total{reason="locked_out"}`) < 5 {
		t.Error("the metrics do not tell of lockouts")
	}
}

// TestHostileRequests: what no honest client sends.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	deep := func(open, end string, n int) string { return strings.Repeat(open, n) + "1" + strings.Repeat(end, n) }
	for name, body := range map[string]string{
		"deep batch":   `{"items":[` + deep("[", "]", 5000) + `]}`,
		"deep object":  `{"items":[` + deep(`{"a":`, "}", 5000) + `]}`,
		"deep in text": `{"items":[{"key":7,"plaintext":"` + strings.Repeat("[", 100) + `"}],"x":1}`,
	} {
		s.wantError(s.post("/v1/batch/encrypt", body), 400, "bad_request")
		if a := s.post("/v1/batch/encrypt", body); strings.Contains(a.text("detail"), "nested") != (name != "deep in text") {
			t.Errorf("%s: %s", name, a.raw)
		}
	}
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 64<<20))
	_ = z.Close()
	for _, encoding := range []string{"gzip", "deflate", "br", "identity, gzip"} {
		s.wantError(s.post("/v1/keys/7/encrypt", bomb.Bytes(), "Content-Encoding", encoding), 415, "unsupported_media_type")
	}
	for _, name := range []string{"Authorization", "Content-Type", "Content-Encoding", "Trikey-Context", "Trikey-Algorithm"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.api+"/v1/keys/7/encrypt", strings.NewReader(`{"plaintext":""}`))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(s.key, s.secret)
		req.Header.Add(name, "identity")
		req.Header.Add(name, "identity")
		s.wantError(s.send(req), 400, "bad_request")
	}
	// Nobody is a proxy here: what a caller writes of its address is nothing.
	s.from(9)
	for _, name := range []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip", "True-Client-Ip", "X-Client-Ip", "Cf-Connecting-Ip"} {
		for _, value := range []string{"127.0.0.1", "::ffff:127.0.0.1", "for=127.0.0.1"} {
			if a := s.post("/v1/keys/7/encrypt", object{"plaintext": ""}, name, value); a.code() != "ip_not_allowed" && a.code() != "locked_out" {
				t.Errorf("%s: %s: %s", name, value, a.raw)
			}
		}
	}
}

// TestSlowAndHuge: connections that only take room are ended, and bodies that are too
// large are refused before they are sent.
func TestSlowAndHuge(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	authorization := "Authorization: Basic " + b64(s.key+":"+s.secret) + "\r\n"
	dial := func() *tls.Conn {
		t.Helper()
		transport, _ := s.client.Transport.(*http.Transport)
		cfg := transport.TLSClientConfig.Clone()
		cfg.NextProtos = nil
		c, err := tls.Dial("tcp", strings.TrimPrefix(s.api, "https://"), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	slow := dial() // its end is read below, when the others have been tried
	ended := make(chan error, 1)
	go func() {
		_, err := io.WriteString(slow, "POST /v1/keys/7/encrypt HTTP/1.1\r\nHost: x\r\n"+authorization)
		for err == nil {
			time.Sleep(200 * time.Millisecond)
			_, err = io.WriteString(slow, "X-A: b\r\n")
		}
		ended <- err
	}()
	for name, test := range map[string]struct{ head, want string }{
		"10 GB":               {"Content-Length: 10737418240\r\nExpect: 100-continue\r\n", "413"},
		"two lengths":         {"Content-Length: 5\r\nContent-Length: 6\r\n", "400"},
		"a length below 0":    {"Content-Length: -5\r\n", "400"},
		"an unknown transfer": {"Transfer-Encoding: gzip, chunked\r\n", "501"},
		"a header of 1 MB":    {"X-A: " + strings.Repeat("x", 1<<20) + "\r\n", "431"},
	} {
		c := dial()
		go func() {
			_, _ = io.WriteString(c, "POST /v1/keys/7/encrypt HTTP/1.1\r\nHost: x\r\n"+authorization+test.head+"\r\n0\r\n\r\n")
		}()
		answer := make([]byte, 12)
		if _, err := io.ReadFull(c, answer); err != nil || string(answer[9:]) != test.want {
			t.Errorf("%s: %q, %v; want %s", name, answer, err, test.want)
		}
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("ended well")
		}
	case <-time.After(time.Minute):
		t.Error("a header that comes byte by byte is waited for")
	}
}

// TestConnectionLimit: an address has so many connections and no more, others theirs.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start("TRIKEY_LIMITS_CONNECTIONS=3")
	handshake := func(last byte) (net.Conn, error) {
		d := &tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}, NetDialer: &net.Dialer{
			LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, last)}, Timeout: 30 * time.Second,
		}}
		return d.DialContext(t.Context(), "tcp", strings.TrimPrefix(s.api, "https://"))
	}
	var open []net.Conn
	for range 3 {
		c, err := handshake(1)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if c, err := handshake(1); err == nil {
		t.Errorf("a fourth connection from %s", c.LocalAddr())
	}
	c, err := handshake(2)
	if err != nil {
		t.Fatalf("from another address: %v", err)
	}
	_ = c.Close()
	_ = open[0].Close()
	within(t, "a connection may follow one that ended", func() bool {
		c, err := handshake(1)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// TestReload: limits, proxies and certificates are read anew when their files change; what
// has a fault changes nothing and says so.
func TestReload(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	if a := s.once(); a.status != 200 {
		t.Fatal(string(a.raw))
	}
	s.configure(func(c *config.Config) { c.Limits.App = "items=0.01/s,burst=1" })
	within(t, "the new limit holds", func() bool { return s.once().code() == "rate_limited" })

	failures := s.metric(`trikey_config_reload_total{result="failed"}`)
	s.configure(func(c *config.Config) { c.Limits.App = "items=fast" })
	within(t, "a limit that is none is refused", func() bool {
		return s.metric(`trikey_config_reload_total{result="failed"}`) > failures && s.metric("trikey_config_reload_failed") == 1
	})
	s.wantLater(s.once(), "rate_limited")
	if s.metric(`trikey_alerts_total{kind="reload_failed"}`) != 1 {
		t.Error("no alert")
	}

	s.configure(func(c *config.Config) {
		c.Limits.App, c.Ops.Listen = "", "127.0.0.1:1"
		c.API.TrustedProxies = append(c.API.TrustedProxies, prefix(t, "127.0.0.1/32"))
	})
	within(t, "the limit is gone", func() bool { return s.once().status == 200 })
	if a := s.post("/v1/keys/7/encrypt", object{"plaintext": ""}, "X-Forwarded-For", "1.2.3.4"); a.code() != "ip_not_allowed" {
		t.Errorf("behind a proxy that is trusted by now: %s", a.raw)
	}
	if s.metric("trikey_config_reload_failed") != 0 {
		t.Error("the metric still tells of a fault")
	}
	s.kill() // the log is written until then
	if log := s.log.String(); !strings.Contains(log, "ops.listen") || !strings.Contains(log, "restart") {
		t.Error("the log does not name the key that needs a restart")
	}
}

// TestCertificateReload needs no signal.
func TestCertificateReload(t *testing.T) {
	t.Parallel()
	s, other := newSite(t), newSite(t)
	s.start()
	first, _, err := handshake(strings.TrimPrefix(s.api, "https://"), &tls.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"cert.pem", "key.pem"} {
		s.write(s.path("tls", file), other.read("tls", file))
	}
	within(t, "the new certificate is shown", func() bool {
		leaf, _, err := handshake(strings.TrimPrefix(s.api, "https://"), &tls.Config{})
		return err == nil && leaf != first
	})
}

func prefix(t *testing.T, text string) netip.Prefix {
	t.Helper()
	p, err := netip.ParsePrefix(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (s *site) read(name ...string) []byte {
	s.t.Helper()
	raw, err := os.ReadFile(s.path(name...))
	if err != nil {
		s.t.Fatal(err)
	}
	return raw
}
