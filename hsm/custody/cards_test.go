package custody_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/custody"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

func text(t *testing.T, s string) *secret.Bytes {
	t.Helper()
	b, err := secret.Move([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Wipe)
	return b
}

// store puts an object of somebody else on a card.
func (s *site) store(id hsm.CardID, value string) {
	s.t.Helper()
	card, err := s.cfg.Reader.Login(s.t.Context(), id, s.pin)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(card.Store(s.t.Context(), "trikey share 1", text(s.t, value)), card.Close()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) format(id hsm.CardID, force string, want error) hsm.FormatReport {
	s.t.Helper()
	report, err := s.desk.Format(s.t.Context(), id, s.pin, force)
	if !errors.Is(err, want) || (err == nil) != (want == nil) {
		s.t.Errorf("format %q, force %q: %v, want %v", id.Label, force, err, want)
	}
	return report
}

// Formatting takes Trikey's objects, and no others, and a card of the current dealing
// only when its serial is confirmed.
func TestFormat(t *testing.T) {
	s := newSite(t)
	a, b, c := s.cards[0], s.cards[1], s.cards[2]
	s.begin()
	s.format(a, "", fault.Conflict)
	if err := s.desk.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.store(a, "somebody else's, whatever its label says")
	if r := s.format(a, "", nil); r.Removed != 0 || r.Foreign != 1 {
		t.Errorf("a card without shares: %+v", r)
	}
	s.init()
	s.format(a, "", fault.CardInUse)
	s.format(a, b.Serial, fault.CardInUse)
	s.format(hsm.CardID{Label: "a"}, "", fault.BadRequest)
	if n := s.objects(); n != 4 {
		t.Errorf("what was refused left %d objects", n)
	}
	if r := s.format(a, a.Serial, nil); r.Removed != 1 || r.Foreign != 1 || s.objects() != 3 {
		t.Errorf("%+v, %d objects", r, s.objects())
	}
	// A machine that does not know the dealing any more takes the cards for another's.
	s.cfg.Dir = t.TempDir()
	s.restart()
	for _, id := range []hsm.CardID{b, c} {
		if r := s.format(id, "", nil); r.Removed != 1 {
			t.Errorf("%+v", r)
		}
	}
	if n := s.objects(); n != 1 {
		t.Errorf("%d objects are left", n)
	}
	s.init()
}

// A damaged share is Trikey's too, and a card of the record is of the dealing.
func TestFormatDamaged(t *testing.T) {
	s := newSite(t)
	s.init()
	card, err := s.cfg.Reader.Login(t.Context(), s.cards[0], s.pin)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := card.Objects(t.Context())
	if err != nil || len(objects) != 1 {
		t.Fatal(objects, err)
	}
	err = card.Remove(t.Context(), objects[0])
	_ = objects[0].Use(func(b []byte) error { b[len(b)-1] ^= 1; return nil })
	if err = errors.Join(err, card.Store(t.Context(), "share", objects[0]), card.Close()); err != nil {
		t.Fatal(err)
	}
	s.format(s.cards[0], "", fault.CardInUse)
	if r := s.format(s.cards[0], s.cards[0].Serial, nil); r.Removed != 1 || s.objects() != 2 {
		t.Errorf("%+v", r)
	}
}

func TestInitialiseCard(t *testing.T) {
	s := newSite(t)
	for name, test := range map[string]struct{ label, soPIN, pin string }{
		"no label":      {"", "12345678", "1111"},
		"a long label":  {"123456789012345678901234567890123", "12345678", "1111"},
		"blanks":        {"card ", "12345678", "1111"},
		"no PIN":        {"card", "12345678", ""},
		"no SO PIN":     {"card", "", "1111"},
		"one PIN twice": {"card", "12345678", "12345678"},
	} {
		if _, err := s.desk.Initialise(t.Context(), hsm.CardID{Label: test.label}, text(t, test.soPIN), text(t, test.pin)); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	id, err := s.desk.Initialise(t.Context(), hsm.CardID{Label: "fresh"}, text(t, "12345678"), s.pin)
	if err != nil {
		t.Fatal(err)
	}
	s.cards = []hsm.CardID{id, s.cards[1], s.cards[2]}
	s.init() // it is a card like the others
}

func TestChangePIN(t *testing.T) {
	s := newSite(t)
	s.init()
	fresh := text(t, "87654321")
	if err := s.desk.ChangePIN(t.Context(), s.cards[0], s.pin, s.pin); !errors.Is(err, fault.BadRequest) {
		t.Errorf("to the same PIN: %v", err)
	}
	if err := s.desk.ChangePIN(t.Context(), s.cards[0], s.pin, fresh); err != nil {
		t.Fatal(err)
	}
	if _, err := s.desk.Present(t.Context(), s.cards[0], s.pin); !errors.Is(err, fault.PINIncorrect) {
		t.Errorf("the old PIN: %v", err)
	}
	if _, err := s.desk.Present(t.Context(), s.cards[0], fresh); err != nil {
		t.Errorf("the new PIN: %v", err)
	}
}

// A confirmed last try is one try, also where a step would log in more than once.
func TestLastTry(t *testing.T) {
	s := newSite(t)
	s.begin()
	wrong, id := text(t, "00000000x"), s.cards[0]
	deal := func(pin *secret.Bytes, lastTry string, want error) {
		t.Helper()
		_, err := s.desk.Deal(hsm.ConfirmLastTry(t.Context(), lastTry), id, pin)
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	deal(wrong, "", fault.PINIncorrect)
	deal(wrong, id.Serial, fault.PINIncorrect)
	deal(s.pin, "", fault.PINTriesSpent)
	deal(wrong, id.Serial, fault.PINIncorrect)
	cards, err := s.desk.Cards(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cards {
		if want := map[bool]int{true: 3}[c.Serial == id.Serial]; c.PINTries != want {
			t.Errorf("card %q has %d tries, not %d", c.Label, c.PINTries, want)
		}
	}
	deal(s.pin, id.Serial, nil)
}

// pulled is a reader whose cards are pulled out as soon as one is logged in to.
type pulled struct {
	hsm.Reader
	pull func()
}

func (p *pulled) Login(ctx context.Context, id hsm.CardID, pin *secret.Bytes) (hsm.Card, error) {
	card, err := p.Reader.Login(ctx, id, pin)
	if err == nil {
		p.pull()
	}
	return card, err
}

// A card that is pulled out while it is formatted is an error, and no other card is
// harmed.
func TestFormatPulled(t *testing.T) {
	s := newSite(t)
	s.init()
	id := s.cards[0]
	tokens := filepath.Join(filepath.Dir(filepath.Dir(id.Module)), "tokens")
	whole := s.cfg
	s.cfg.Reader = &pulled{whole.Reader, func() {
		if err := errors.Join(os.Rename(tokens, tokens+".away"), os.MkdirAll(tokens, 0o700)); err != nil {
			t.Error(err)
		}
	}}
	s.restart()
	for range 2 { // as it is pulled, and when it is not there
		s.format(id, id.Serial, fault.CardAbsent)
	}
	if err := errors.Join(os.RemoveAll(tokens), os.Rename(tokens+".away", tokens)); err != nil {
		t.Fatal(err)
	}
	s.cfg = whole
	s.restart()
	s.format(id, id.Serial, nil)
	if n := s.objects(); n != 2 {
		t.Errorf("%d objects are left", n)
	}
	if _, err := custody.New(whole); err != nil {
		t.Error(err)
	}
}
