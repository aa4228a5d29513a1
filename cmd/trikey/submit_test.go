package main_test

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/hsm/p11/softhsm"
	"github.com/trikey/trikey/internal/memscan"
	"github.com/trikey/trikey/internal/secret"
)

// custodian is somebody with a card and a computer elsewhere: a reader with a library
// and token of its own, and nothing else of the site but the authority's certificate
// and the card's PIN.
type custodian struct {
	s      *site
	dir    string
	to     string
	module p11.ModuleConfig
}

// custodian moves a card of the site to another computer.
func (s *site) custodian(card, to string) *custodian {
	s.t.Helper()
	c := &custodian{s: s, dir: s.t.TempDir(), to: to}
	serial := s.serial(card)
	var err error
	if c.module, err = softhsm.NewReader(c.dir); err != nil {
		s.t.Fatal(err)
	}
	// SoftHSM keeps a token in a directory whose name ends with the token's serial.
	found, err := filepath.Glob(s.path("cards", "tokens", "*"+serial[:4]+"-"+serial[4:]))
	if err != nil || len(found) != 1 {
		s.t.Fatalf("tokens of %s: %v, %v", serial, found, err)
	}
	if err := os.Rename(found[0], filepath.Join(c.dir, "tokens", filepath.Base(found[0]))); err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (c *custodian) args(more ...string) []string {
	args := []string{"card", "submit", "--to", c.to, "--cacert", c.s.path("ca.pem"), "--module", c.module.Path, "--state", filepath.Join(c.dir, "state")}
	for k, v := range c.module.Env {
		args = append(args, "--module-env", k+"="+v)
	}
	return append(args, more...)
}

// submit runs the command, without a configuration.
func (c *custodian) submit(more ...string) result {
	c.s.t.Helper()
	return run(c.s.t, nil, []string{"TRIKEY_CONFIG="}, c.args(more...)...)
}

// startRemote starts the service with a listener for custodians, and returns its
// address.
func (s *site) startRemote(env ...string) string {
	s.t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.start(append(env, "TRIKEY_MACHINE_CUSTODIANS_LISTEN="+address)...)
	return "https://" + address
}

// waiting is a trikey machine unseal --remote under way.
type waiting struct {
	t           *testing.T
	cmd         *exec.Cmd
	out         *watched
	fingerprint string
}

// watched is what a process writes, for another goroutine to look at.
type watched struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

var fingerprintText = regexp.MustCompile(`fingerprint  ((?:[A-Z2-7]{4}-){3}[A-Z2-7]{4})\n`)

func (s *site) unsealRemote() *waiting {
	s.t.Helper()
	w := &waiting{t: s.t, out: &watched{}}
	w.cmd = exec.CommandContext(s.t.Context(), trikey, "machine", "unseal", "--remote", "--config", s.path("trikey.yaml"))
	w.cmd.Stdout, w.cmd.Stderr = w.out, w.out
	if err := w.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	w.shows("cards are given")
	found := fingerprintText.FindStringSubmatch(w.out.String())
	if found == nil {
		s.t.Fatalf("no fingerprint in %s", w.out)
	}
	w.fingerprint = found[1]
	return w
}

func (w *waiting) shows(want string) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(w.out.String(), want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("it shows %s, not %q", w.out, want)
		}
	}
}

// ends waits for the end of the command.
func (w *waiting) ends(code int, want string) {
	w.t.Helper()
	err := w.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	if got := w.cmd.ProcessState.ExitCode(); got != code || !strings.Contains(w.out.String(), want) {
		w.t.Errorf("exit code %d, want %d and %q: %s", got, code, want, w.out)
	}
}

func (r result) wants(t *testing.T, code int, want string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.out+r.err, want) {
		t.Errorf("%+v; want exit code %d and %q", r, code, want)
	}
}

// TestSubmit opens a machine with two cards in its reader and one that is elsewhere.
func TestSubmit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	to := s.startRemote()
	c := s.custodian("3", to)
	pin := []string{"--pin-file", s.path("pins", "3")}
	given := func(fingerprint string) []string { return append(pin, "--fingerprint", fingerprint) }

	c.submit(pin...).wants(t, 3, "does not wait for cards from elsewhere")
	w := s.unsealRemote()
	if r := s.unseal("1"); r.code != 3 {
		t.Fatal(r)
	}
	w.shows("1 of 3 cards are given")
	c.submit(pin...).wants(t, 2, "no terminal")
	c.submit(given("AAAA-BBBB-CCCC-DDDD")...).wants(t, 6, "somebody stands between")
	c.submit(given(w.fingerprint[:15]+"AAAA")...).wants(t, 6, "nothing was sent")
	run(t, nil, nil, "card", "submit", "--to", to, "--module", c.module.Path).wants(t, 3, "certificate")
	run(t, nil, nil, "card", "submit", "--to", strings.Replace(to, "https", "http", 1), "--module", c.module.Path).wants(t, 2, "https://HOST:PORT")
	c.submit("--pin-file", secretFile(t, "00000000x"), "--fingerprint", w.fingerprint).wants(t, 4, "1 try left")
	c.submit("--pin-file", s.path("pins", "2"), "--fingerprint", w.fingerprint).wants(t, 2, "nothing was tried")
	c.submit("--pin-file", secretFile(t, "00000000x"), "--fingerprint", w.fingerprint).wants(t, 4, "CKR_PIN_INCORRECT")
	c.submit(given(w.fingerprint)...).wants(t, 4, "--last-try "+s.serial("3"))
	if got := s.state(); got != "collecting 1/3" {
		t.Errorf("after refusals: %s", got)
	}
	c.submit(append(given(strings.ToLower(w.fingerprint)), "--last-try", s.serial("3"))...).wants(t, 0, "2 of 3 cards are given")
	w.shows("2 of 3 cards are given")
	c.submit(given(w.fingerprint)...).wants(t, 1, "given already")
	if r := s.unseal("2"); r.code != 0 {
		t.Fatal(r)
	}
	w.ends(0, "3 of 3 cards are given")
	if got := s.state(); got != "open 3/3" {
		t.Errorf("%s", got)
	}
	c.submit(given(w.fingerprint)...).wants(t, 3, "does not wait")

	// Sealed again, it needs another window, with another key.
	s.ok("machine", "seal")
	c.submit(given(w.fingerprint)...).wants(t, 3, "does not wait")
	old, w := w, s.unsealRemote()
	c.submit(given(old.fingerprint)...).wants(t, 6, "older window")
	if w.fingerprint == old.fingerprint {
		t.Error("two windows have one fingerprint")
	}
	if err := w.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	w.ends(3, "the submission window is closed")
	c.submit(given(w.fingerprint)...).wants(t, 3, "does not wait")
	replaced, w := s.unsealRemote(), s.unsealRemote()
	replaced.ends(3, "another window took its place")
	s.ok("machine", "seal")
	w.ends(3, "the machine was sealed")
}

// A custodian at a terminal types what only the people at the machine can tell.
func TestSubmitTerminal(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.custodian("1", s.startRemote("TRIKEY_MACHINE_CUSTODIANS_CERT="+s.path("tls", "cert.pem"), "TRIKEY_MACHINE_CUSTODIANS_KEY="+s.path("tls", "key.pem")))
	w := s.unsealRemote()
	last := strings.LastIndexByte(w.fingerprint, '-') + 1
	x := s.atTerminal(c.args()...)
	x.shows("fingerprint  " + w.fingerprint[:last] + "????")
	x.answer("its last four characters: ", "AAAA")
	x.shows("nothing was sent")
	x.ends(6)
	pin := s.pin("1")
	defer pin.Wipe()
	var typed string
	_ = pin.Use(func(p []byte) error { typed = string(p); return nil })
	x = s.atTerminal(c.args()...)
	x.answer("its last four characters: ", strings.ToLower(w.fingerprint[last:]))
	x.answer(s.serial("1")+". PIN: ", typed)
	x.shows("1 of 3 cards are given")
	x.ends(0)
	w.shows("1 of 3 cards are given")
}

// The card of another site is not sent; what is sent all the same is refused, and the
// listener has nothing but its two routes.
func TestSubmitRefusals(t *testing.T) {
	t.Parallel()
	s, other := newSite(t), newSite(t)
	to := s.startRemote()
	c := other.custodian("1", to)
	w := s.unsealRemote()
	args := append(c.args("--pin-file", other.path("pins", "1"), "--fingerprint", w.fingerprint), "--cacert", s.path("ca.pem"))
	run(t, nil, nil, args...).wants(t, 6, "nothing was sent")
	call := func(method, path string, body string) answer {
		req, err := http.NewRequestWithContext(t.Context(), method, to+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		return s.send(req)
	}
	window := call("GET", "/v1/submission", "")
	if window.status != 200 || window.body["have"] != 0.0 || window.body["threshold"] != 3.0 || len(window.body) != 6 {
		t.Errorf("%d %s", window.status, window.raw)
	}
	s.wantError(call("GET", "/v1/status", ""), 404, "not_found")
	s.wantError(call("GET", "/", ""), 404, "not_found")
	s.wantError(call("DELETE", "/v1/submission", ""), 405, "method_not_allowed")
	s.wantError(call("POST", "/v1/submission", `{"window":"x"}`), 400, "bad_request")
	s.wantError(call("POST", "/v1/submission", `{"sealed":"`+strings.Repeat("A", 40<<10)+`"}`), 413, "too_large")
	body := `{"window":"` + window.text("window") + `","sealed":"AAAA"}`
	for range 10 {
		s.wantError(call("POST", "/v1/submission", body), 422, "decrypt_failed")
	}
	s.wantError(call("POST", "/v1/submission", body), 409, "no_submission_window")
	s.wantError(call("GET", "/v1/submission", ""), 409, "no_submission_window")
	w.ends(3, "too many submissions were refused")
	s.kill()
	if n := strings.Count(s.log.String(), "the submission window was closed"); n != 1 {
		t.Errorf("the log tells %d times: %s", n, s.log)
	}
}

// Without an address there is no listener and no window.
func TestSubmitOff(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	s.wants(2, "machine.custodians.listen", "machine", "unseal", "--remote")
	s.wants(2, "remote pin-file", "machine", "unseal", "--remote", "--pin-file", s.path("pins", "1"))
	if r := run(t, nil, []string{"TRIKEY_MACHINE_CUSTODIANS_CERT=x"}, "machine", "status", "--config", s.path("trikey.yaml")); r.code != 2 ||
		!strings.Contains(r.err, "cert and key belong together") {
		t.Errorf("%+v", r)
	}
}

// TestSubmitMemory looks for what came from elsewhere in the memory of the service.
func TestSubmitMemory(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var needles []memscan.Needle
	for _, card := range []string{"1", "2", "3"} {
		envelope, err := secret.Move(s.object(card))
		if err != nil {
			t.Fatal(err)
		}
		share, err := hsm.ParseShare(envelope)
		if err != nil {
			t.Fatal(err)
		}
		needles = append(needles, needle(t, "share "+card, share.Value), needle(t, "PIN "+card, s.pin(card)))
	}
	canary, needles := withCanary(needles)
	c := s.custodian("3", s.startRemote(canary))
	for range 3 {
		w := s.unsealRemote()
		if r := s.unseal("1", "2"); r.code != 3 {
			t.Fatal(r)
		}
		s.clean(needles)
		c.submit("--pin-file", s.path("pins", "3"), "--fingerprint", w.fingerprint).wants(t, 0, "The machine is open")
		w.ends(0, "3 of 3")
		s.clean(needles)
		s.ok("machine", "seal")
	}
	s.clean(needles)
}
