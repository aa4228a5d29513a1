package main_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/trikey/trikey/cmd/trikey/config"
)

// receiver takes alerts, as a service of somebody else does.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	fail   int // so many more deliveries are refused
	seen   map[string]bool
	bodies [][]byte
	bad    []error
}

func newReceiver(t *testing.T, secret string) *receiver {
	t.Helper()
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{seen: map[string]bool{}}
	r.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		if err == nil {
			err = verifier.Verify(body, req.Header)
		}
		if err != nil {
			r.bad = append(r.bad, err)
		}
		if r.fail > 0 {
			r.fail--
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		r.seen[req.Header.Get("Webhook-Id")] = true
		r.bodies = append(r.bodies, body)
	}))
	t.Cleanup(r.Close)
	return r
}

// has reports whether an alert of that kind has come.
func (r *receiver) has(kind string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.bodies {
		if bytes.Contains(b, []byte(`"type":"trikey.`+kind+`"`)) {
			return true
		}
	}
	return false
}

// alertTo has the site's alerts go to a receiver.
func (s *site) alertTo(r *receiver, secret string) {
	s.t.Helper()
	s.write(s.path("webhook.secret"), []byte(secret+"\n"))
	s.write(s.path("webhook.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw}))
	s.configure(func(c *config.Config) {
		c.Alerts.Webhook = config.Webhook{URL: r.URL + "/hook?token=path-secret", CA: s.path("webhook.pem"), SecretFile: s.path("webhook.secret")}
	})
}

func webhookSecret(t *testing.T) string {
	t.Helper()
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		t.Fatal(err)
	}
	return "whsec_" + base64.StdEncoding.EncodeToString(raw)
}

// TestAlerts: what looks like an attack comes to a webhook, signed, once, and again until
// it is taken; with nothing in it that nobody should read.
func TestAlerts(t *testing.T) {
	t.Parallel()
	secret := webhookSecret(t)
	s, r := newSite(t), newReceiver(t, secret)
	r.fail = 2
	s.alertTo(r, secret)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.0/29", "keys=7;ops="+allOps)
	context := object{"conversation": "canary-conversation", "message": "canary-message"}
	for range 3 {
		s.encrypt("7", []byte("canary-plaintext"), context)
	}
	within(t, "the new address is told, at the third try", func() bool { return r.has("new_address") })
	right := s.secret
	s.secret = "canary-secret"
	for range 40 {
		s.once()
	}
	s.secret = right
	within(t, "the lockout is told", func() bool { return r.has("locked_out") })
	// Many failures, of many AppKeys that are locked out one after the other.
	for last := byte(10); last < 30; last++ {
		s.from(last)
		for range 4 {
			s.once()
		}
	}
	within(t, "a burst of failures", func() bool { return r.has("failure_burst") })
	s.from(2)
	s.encrypt("7", []byte("x"), context)
	within(t, "the second address", func() bool { return s.metric(`trikey_alerts_total{kind="new_address"}`) == 2 })
	s.stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.bad) > 0 {
		t.Errorf("a verifier that is not ours refuses %d deliveries: %v", len(r.bad), r.bad[0])
	}
	if len(r.seen) != len(r.bodies) {
		t.Errorf("%d alerts were delivered under %d ids", len(r.bodies), len(r.seen))
	}
	everything := fmt.Sprintf("%s %s", bytes.Join(r.bodies, nil), s.log)
	for _, never := range []string{"canary", right, "path-secret", secret} {
		if strings.Contains(everything, never) {
			t.Errorf("alerts or log have %q", never)
		}
	}

	// The address is known after a restart.
	s.open()
	s.encrypt("7", []byte("x"), context)
	if s.metric(`trikey_alerts_total{kind="new_address"}`) != 0 {
		t.Error("a known address is new after a restart")
	}
}

// TestBudget: an app that reads out conversation after conversation decrypts no more, on
// no node and after no restart, until it is reopened for a reason that is recorded.
func TestBudget(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	var sealed []string
	context := func(i int) object { return object{"conversation": fmt.Sprint("c-", i%10)} }
	for i := range 20 {
		sealed = append(sealed, s.encrypt("7", []byte("text"), context(i)))
	}
	if r := s.run("app", "budget", "im", "items=many"); r.code != 2 {
		t.Errorf("a budget that is none: %+v", r)
	}
	s.ok("app", "budget", "im", "items=1000/day,conversations=5/day")
	decrypt := func(i int) answer {
		t.Helper()
		return s.post("/v1/keys/7/decrypt", object{"ciphertext": sealed[i], "context": context(i)})
	}
	for _, i := range []int{0, 1, 2, 3, 4, 10, 11, 0, 1} { // five conversations
		if a := decrypt(i); a.status != 200 {
			t.Fatalf("within the budget: %s", a.raw)
		}
	}
	batch := func(list ...int) string {
		t.Helper()
		var items []object
		for _, i := range list {
			items = append(items, object{"ciphertext": sealed[i], "context": context(i)})
		}
		a := s.post("/v1/batch/decrypt", object{"items": items})
		var codes []string
		results, _ := a.body["items"].([]any)
		for _, r := range results {
			code := "ok"
			if strings.Contains(fmt.Sprint(r), "budget_exceeded") {
				code = "budget_exceeded"
			}
			codes = append(codes, code)
		}
		return strings.Join(codes, " ")
	}
	if got := batch(0, 5, 1); got != "ok budget_exceeded budget_exceeded" {
		t.Errorf("a sixth conversation, and what comes after it: %s", got)
	}
	suspended := func(when string) {
		t.Helper()
		s.wantError(decrypt(0), 403, "budget_exceeded")
		if a := s.post("/v1/stream/7/decrypt", "x", "Content-Type", "application/octet-stream"); a.status != 422 {
			t.Errorf("%s, no stream: %s", when, a.raw)
		}
		s.encrypt("7", []byte("text"), nil) // fails the test where it is not 200
		if a := s.post("/v1/reencrypt", object{"ciphertext": sealed[0], "context": context(0)}); a.status != 200 {
			t.Errorf("%s, re-encrypt: %s", when, a.raw)
		}
		if r := s.ok("app", "show", "im"); !strings.Contains(r.out, "suspended  decryption") {
			t.Errorf("%s, app show does not tell:\n%s", when, r.out)
		}
	}
	suspended("at once")
	s.refusedStream()
	within(t, "the suspension is on the disk", func() bool {
		return strings.Contains(s.ok("app", "show", "im", "-o", "json").out, `"suspended"`) && s.metric(`trikey_alerts_total{kind="budget_exceeded"}`) == 1
	})
	s.kill()
	s.open()
	suspended("after kill -9")
	s.ok("app", "budget", "im", "none")
	suspended("with the budget taken away")
	s.ok("app", "budget", "im", "conversations=5/day")

	if r := s.run("app", "reopen", "im"); r.code != 2 {
		t.Errorf("reopened without a reason: %+v", r)
	}
	if r := s.run("app", "reopen", "im", "--why", " "); r.code != 2 {
		t.Errorf("reopened for no reason: %+v", r)
	}
	s.ok("app", "reopen", "im", "--why", "case 4711")
	if a := decrypt(5); a.status != 200 {
		t.Errorf("reopened: %s", a.raw)
	}
	if r := s.run("app", "reopen", "im", "--why", "again"); r.code != 1 {
		t.Errorf("reopened twice: %+v", r)
	}
	events := s.ok("audit", "tail", "-n", "50", "-o", "json").out
	if !strings.Contains(events, "case 4711") || !strings.Contains(events, "budget_exceeded") {
		t.Errorf("the audit does not tell:\n%s", events)
	}
}

// refusedStream wants an app whose budget is spent to be refused a stream that would open.
func (s *site) refusedStream() {
	s.t.Helper()
	a := s.post("/v1/stream/7/encrypt", "plaintext", "Content-Type", "application/octet-stream")
	if a.status != 200 {
		s.t.Fatal(string(a.raw))
	}
	s.wantError(s.post("/v1/stream/7/decrypt", a.raw, "Content-Type", "application/octet-stream"), 403, "budget_exceeded")
}
