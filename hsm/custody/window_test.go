package custody_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/custody"
	"github.com/trikey/trikey/hsm/submit"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// newRemoteSite is a site that takes shares from elsewhere, and what its desk logs.
func newRemoteSite(t *testing.T) (*site, *bytes.Buffer) {
	t.Helper()
	s, log := newSite(t), &bytes.Buffer{}
	s.cfg.Remote, s.cfg.Log = true, slog.New(slog.NewTextHandler(log, nil))
	s.restart()
	s.init()
	return s, log
}

func (s *site) window() hsm.Window {
	s.t.Helper()
	w, err := s.desk.OpenWindow(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return w
}

// envelope is what a custodian's own computer reads off a card.
func (s *site) envelope(card int, w hsm.Window) (envelope *secret.Bytes, err error) {
	s.t.Helper()
	open, err := s.cfg.Reader.Login(s.t.Context(), s.cards[card], s.pin)
	if err != nil {
		s.t.Fatal(err)
	}
	envelope, err = submit.Read(s.t.Context(), open, w)
	s.t.Cleanup(envelope.Wipe)
	if err := open.Close(); err != nil {
		s.t.Fatal(err)
	}
	return envelope, err
}

func (s *site) sealed(card int, w hsm.Window) []byte {
	s.t.Helper()
	envelope, err := s.envelope(card, w)
	if err != nil {
		s.t.Fatal(err)
	}
	defer envelope.Wipe()
	return s.seal(w, envelope)
}

func (s *site) seal(w hsm.Window, envelope *secret.Bytes) []byte {
	s.t.Helper()
	sealed, err := submit.Seal(w, envelope)
	if err != nil {
		s.t.Fatal(err)
	}
	return sealed
}

// submits sends to a window, and wants an error, or none.
func (s *site) submits(w hsm.Window, sealed []byte, want error) hsm.Receipt {
	s.t.Helper()
	r, err := s.desk.Submit(s.t.Context(), hsm.Submission{Window: w.ID, Sealed: sealed})
	if !errors.Is(err, want) || (err == nil) != (want == nil) {
		s.t.Errorf("submit: %v, want %v", err, want)
	}
	return r
}

// closedSince checks that a window is closed, and why.
func (s *site) closedSince(w hsm.Window, why string) {
	s.t.Helper()
	if _, err := s.desk.WatchWindow(s.t.Context(), w.ID); !errors.Is(err, fault.NoWindow) || !strings.Contains(err.Error(), why) {
		s.t.Errorf("watch: %v, want %q", err, why)
	}
	s.submits(w, []byte("anything"), fault.NoWindow)
}

// Cards given here and elsewhere count alike, and open the machine.
func TestWindow(t *testing.T) {
	s, log := newRemoteSite(t)
	ctx := t.Context()
	if _, err := s.desk.Window(ctx); !errors.Is(err, fault.NoWindow) {
		t.Errorf("before one is open: %v", err)
	}
	_, before := secret.Usage()
	first := s.window()
	old := s.sealed(1, first)
	w := s.window()
	if w.ID == first.ID || bytes.Equal(w.PublicKey, first.PublicKey) || submit.Fingerprint(w) == submit.Fingerprint(first) {
		t.Errorf("two windows are alike: %+v, %+v", first, w)
	}
	s.closedSince(first, "took its place")
	s.submits(first, old, fault.NoWindow)  // to its own window
	s.submits(w, old, fault.DecryptFailed) // into another
	s.submits(hsm.Window{}, old, fault.NoWindow)
	if _, err := s.desk.Present(ctx, s.cards[0], s.pin); err != nil {
		t.Fatal(err)
	}
	s.submits(w, s.sealed(0, w), fault.CardRepeated)
	if r := s.submits(w, s.sealed(1, w), nil); r != (hsm.Receipt{State: hsm.Collecting, Have: 2, Need: 3}) {
		t.Errorf("%+v", r)
	}
	if shown, err := s.desk.WatchWindow(ctx, w.ID); err != nil || shown.Have != 2 || shown.Need != 3 {
		t.Errorf("%+v, %v", shown, err)
	}
	s.submits(w, s.sealed(1, w), fault.CardRepeated)
	if _, err := s.desk.Present(ctx, s.cards[1], s.pin); !errors.Is(err, fault.CardRepeated) {
		t.Errorf("here, after elsewhere: %v", err)
	}
	cards, err := s.desk.Cards(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cards {
		if c.Given != (c.Serial != s.cards[2].Serial) {
			t.Errorf("%+v", c)
		}
	}
	if r := s.submits(w, s.sealed(2, w), nil); r != (hsm.Receipt{State: hsm.Open, Have: 3, Need: 3}) {
		t.Errorf("%+v", r)
	}
	s.closedSince(w, "has its cards")
	if _, err := s.desk.OpenWindow(ctx); !errors.Is(err, fault.MachineOpen) {
		t.Errorf("a window of an open machine: %v", err)
	}
	if err := s.desk.Seal(ctx); err != nil {
		t.Fatal(err)
	}
	s.closedSince(w, "has its cards")
	if _, after := secret.Usage(); after != before {
		t.Errorf("%d bytes are left", after-before)
	}
	if !strings.Contains(log.String(), "came from elsewhere") {
		t.Errorf("the log says %s", log)
	}
}

// What is wrong with a submission is told, changes nothing, and leaves nothing.
func TestWindowRefusals(t *testing.T) {
	s, _ := newRemoteSite(t)
	whole, err := s.envelope(0, s.window())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.desk.Present(t.Context(), s.cards[1], s.pin); err != nil {
		t.Fatal(err)
	}
	type forge = func(w hsm.Window) []byte
	// with seals a share that was changed, with the right checksum.
	with := func(change func(*hsm.Share)) forge {
		return func(w hsm.Window) []byte {
			share, err := hsm.ParseShare(whole)
			if err != nil {
				t.Fatal(err)
			}
			defer share.Value.Wipe()
			change(share)
			envelope, err := share.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			defer envelope.Wipe()
			return s.seal(w, envelope)
		}
	}
	flipped := func(at func(b []byte) *byte) forge {
		return func(w hsm.Window) []byte {
			b := s.seal(w, whole)
			*at(b) ^= 1
			return b
		}
	}
	hello := text(t, "hello")
	_, held := secret.Usage()
	for name, test := range map[string]struct {
		forge forge
		want  error
	}{
		"nothing":              {func(hsm.Window) []byte { return nil }, fault.DecryptFailed},
		"a zero point":         {func(hsm.Window) []byte { return make([]byte, 200) }, fault.DecryptFailed},
		"its key flipped":      {flipped(func(b []byte) *byte { return &b[0] }), fault.DecryptFailed},
		"its share flipped":    {flipped(func(b []byte) *byte { return &b[len(b)-60] }), fault.DecryptFailed},
		"its tag flipped":      {flipped(func(b []byte) *byte { return &b[len(b)-1] }), fault.DecryptFailed},
		"to another split":     {func(w hsm.Window) []byte { w.SplitID = hsm.NewID(); return s.seal(w, whole) }, fault.DecryptFailed},
		"to another machine":   {func(w hsm.Window) []byte { w.MachineID = hsm.NewID(); return s.seal(w, whole) }, fault.DecryptFailed},
		"to another window":    {func(w hsm.Window) []byte { w.ID = hsm.NewID(); return s.seal(w, whole) }, fault.DecryptFailed},
		"no share":             {func(w hsm.Window) []byte { return s.seal(w, hello) }, fault.CardEmpty},
		"another machine's":    {with(func(x *hsm.Share) { x.Manifest.MachineID = hsm.NewID() }), fault.CardOtherMachine},
		"another split's":      {with(func(x *hsm.Share) { x.Manifest.SplitID = hsm.NewID() }), fault.CardSuperseded},
		"a generation before":  {with(func(x *hsm.Share) { x.Manifest.Generation-- }), fault.CardOlder},
		"a generation to come": {with(func(x *hsm.Share) { x.Manifest.Generation++ }), fault.CardNewer},
		"a forged index":       {with(func(x *hsm.Share) { x.Index = 3 }), fault.CardMismatch},
		"a forged share":       {with(func(x *hsm.Share) { _ = x.Value.Use(func(b []byte) error { b[0] ^= 1; return nil }) }), fault.CardMismatch},
	} {
		w := s.window()
		s.submits(w, test.forge(w), test.want)
		if now := s.state(); now.State != hsm.Collecting || now.Have != 1 {
			t.Errorf("%s: %+v", name, now)
		}
		if _, now := secret.Usage(); now != held {
			t.Errorf("%s left %d bytes in memory", name, now-held)
		}
	}
	if err := s.desk.CloseWindow(t.Context(), s.window().ID); err != nil {
		t.Fatal(err)
	}
	if _, now := secret.Usage(); now != held-32 {
		t.Errorf("of %d bytes, %d are left without the window's key", held, now)
	}
}

// A custodian's own computer does not send the share of another machine or split.
func TestRead(t *testing.T) {
	s, _ := newRemoteSite(t)
	for want, change := range map[error]func(*hsm.Window){
		fault.CardOtherMachine: func(w *hsm.Window) { w.MachineID = hsm.NewID() },
		fault.CardSuperseded:   func(w *hsm.Window) { w.SplitID = hsm.NewID() },
	} {
		w := s.window()
		change(&w)
		if envelope, err := s.envelope(0, w); !errors.Is(err, want) || envelope != nil {
			t.Errorf("%v, want %v", err, want)
		}
	}
	s.format(s.cards[0], s.cards[0].Serial, nil)
	s.store(s.cards[0], "somebody else's")
	if _, err := s.envelope(0, s.window()); !errors.Is(err, fault.CardEmpty) {
		t.Errorf("a card without a share: %v", err)
	}
}

// Whoever floods a window closes it, and nothing else; the log tells.
func TestWindowFlood(t *testing.T) {
	s, log := newRemoteSite(t)
	w := s.window()
	if _, err := s.desk.Present(t.Context(), s.cards[0], s.pin); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if strings.Contains(log.String(), "was closed") {
			t.Errorf("closed after %d", i)
		}
		garbage := make([]byte, 400)
		_, _ = rand.Read(garbage)
		s.submits(w, garbage, fault.DecryptFailed)
	}
	s.closedSince(w, "too many")
	if n := strings.Count(log.String(), "too many submissions were refused"); n != 1 {
		t.Errorf("the log tells %d times: %s", n, log)
	}
	if now := s.state(); now.Have != 1 {
		t.Errorf("%+v", now)
	}
	again := s.window()
	s.submits(again, s.sealed(1, again), nil)
}

// Every end of a window closes it, and forgets its key and what was sent to it.
func TestWindowEnds(t *testing.T) {
	s, _ := newRemoteSite(t)
	ctx := t.Context()
	_, before := secret.Usage()
	for why, end := range map[string]func(w hsm.Window) error{
		"people at the machine": func(w hsm.Window) error { return errors.Join(s.desk.CloseWindow(ctx, w.ID), s.desk.Abort(ctx)) },
		"was sealed":            func(hsm.Window) error { return s.desk.Seal(ctx) },
		"forgotten":             func(hsm.Window) error { return s.desk.Abort(ctx) },
		"a ceremony began": func(hsm.Window) error {
			_, err := s.desk.Begin(ctx, hsm.Plan{Kind: hsm.VerifyCards})
			return errors.Join(err, s.desk.Abort(ctx))
		},
	} {
		w := s.window()
		envelope, err := s.envelope(0, w)
		if err != nil {
			t.Fatal(err)
		}
		s.submits(w, s.seal(w, envelope), nil)
		envelope.Wipe()
		if err := end(w); err != nil {
			t.Errorf("%s: %v", why, err)
		}
		s.closedSince(w, why)
		if err := s.desk.CloseWindow(ctx, w.ID); !errors.Is(err, fault.NoWindow) {
			t.Errorf("closed twice: %v", err)
		}
		if _, after := secret.Usage(); after != before {
			t.Errorf("%s: %d bytes are left", why, after-before)
		}
	}
}

// A window that nobody watches, and one to which no card comes, close by themselves.
func TestWindowTimes(t *testing.T) {
	for why, set := range map[string]func(*custody.Config){
		"nobody watched": func(c *custody.Config) { c.Watch = 50 * time.Millisecond },
		"no card came":   func(c *custody.Config) { c.Patience = 50 * time.Millisecond },
	} {
		s, _ := newRemoteSite(t)
		set(&s.cfg)
		s.restart()
		_, before := secret.Usage()
		w := s.window()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if _, err := s.desk.Window(t.Context()); errors.Is(err, fault.NoWindow) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s, and the window is open", why)
			}
		}
		s.closedSince(w, why)
		if _, after := secret.Usage(); after != before {
			t.Errorf("%s: %d bytes are left", why, after-before)
		}
	}
}

// Where there is no listener, a window would wait in vain.
func TestNoListener(t *testing.T) {
	s := newSite(t)
	s.init()
	if _, err := s.desk.OpenWindow(t.Context()); !errors.Is(err, fault.BadConfig) {
		t.Errorf("%v", err)
	}
}
