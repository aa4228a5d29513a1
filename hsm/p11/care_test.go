package p11_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/hsm/pintry"
	"github.com/trikey/trikey/internal/fault"
)

// tries is a machine's reader and what it logs in to.
type tries struct {
	t   *testing.T
	r   *p11.Reader
	dir string
	cfg p11.ModuleConfig
}

func newTries(t *testing.T) *tries {
	t.Helper()
	x := &tries{t: t, dir: t.TempDir(), cfg: newModule(t)}
	x.restart()
	return x
}

func (x *tries) restart() {
	x.t.Helper()
	count, err := pintry.Open(x.dir)
	if err != nil {
		x.t.Fatal(err)
	}
	x.r = p11.NewReader(p11.ReaderConfig{Modules: []p11.ModuleConfig{x.cfg}, Tries: count})
}

func (x *tries) login(id hsm.CardID, pin, lastTry string, want error) {
	x.t.Helper()
	c, err := x.r.Login(hsm.ConfirmLastTry(x.t.Context(), lastTry), id, text(x.t, pin))
	if !errors.Is(err, want) || (err == nil) != (want == nil) {
		x.t.Errorf("login to %q with %q: %v, want %v", id.Label, pin, err, want)
	}
	if err == nil {
		if err := c.Close(); err != nil {
			x.t.Error(err)
		}
	}
}

func (x *tries) used(id hsm.CardID) int {
	x.t.Helper()
	cards, err := x.r.Cards(x.t.Context())
	if err != nil {
		x.t.Fatal(err)
	}
	for _, c := range cards {
		if c.Serial == id.Serial {
			return c.PINTries
		}
	}
	x.t.Fatalf("%q is not there", id.Label)
	return 0
}

// SoftHSM never locks: that a card does not is what the machine's own count sees to.
func TestTries(t *testing.T) {
	x := newTries(t)
	id, other := newToken(t, x.cfg, "card", "1111"), newToken(t, x.cfg, "other", "1111")
	x.login(id, "9999", "", fault.PINIncorrect)
	x.login(id, "1111", "", nil)
	if n := x.used(id); n != 0 {
		t.Errorf("%d tries after a success", n)
	}
	x.login(id, "", "", fault.PINIncorrect) // nothing is tried
	x.login(id, "9999", "", fault.PINIncorrect)
	x.restart()
	x.login(id, "9999", "", fault.PINIncorrect)
	x.login(id, "1111", "", fault.PINTriesSpent)
	x.restart()
	x.login(hsm.CardID{Serial: id.Serial}, "1111", "", fault.PINTriesSpent)
	x.login(id, "1111", other.Serial, fault.PINTriesSpent)
	if n := x.used(id); n != 2 {
		t.Errorf("%d tries", n)
	}
	x.login(other, "1111", "", nil)
	x.login(id, "9999", id.Serial, fault.PINIncorrect)
	x.login(id, "1111", "", fault.PINTriesSpent)
	x.login(id, "1111", id.Serial, nil)
	x.login(id, "1111", "", nil)
}

func TestChangePIN(t *testing.T) {
	x := newTries(t)
	id := newToken(t, x.cfg, "card", "1111")
	change := func(old, fresh string, want error) {
		t.Helper()
		err := x.r.ChangePIN(t.Context(), id, text(t, old), text(t, fresh))
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("from %q to %q: %v, want %v", old, fresh, err, want)
		}
	}
	change("1111", "", fault.BadRequest)
	change("1111", "2", fault.PINIncorrect) // too short for the card
	x.login(id, "1111", "", nil)
	change("9999", "2222", fault.PINIncorrect)
	if n := x.used(id); n != 1 {
		t.Errorf("%d tries after a wrong old PIN", n)
	}
	change("1111", "2222", nil)
	if n := x.used(id); n != 0 {
		t.Errorf("%d tries after a change", n)
	}
	x.login(id, "1111", "", fault.PINIncorrect)
	x.login(id, "2222", "", nil)
}

func TestInitialise(t *testing.T) {
	x := newTries(t)
	old := newToken(t, x.cfg, "old", "1111")
	initialise := func(want hsm.CardID, soPIN, pin string) (hsm.CardID, error) {
		t.Helper()
		return x.r.Initialise(t.Context(), want, text(t, soPIN), text(t, pin))
	}
	for name, test := range map[string]struct {
		id         hsm.CardID
		soPIN, pin string
		want       error
	}{
		"a token":        {hsm.CardID{Label: "new", Serial: old.Serial}, "12345678", "1111", fault.Conflict},
		"no such card":   {hsm.CardID{Label: "new", Serial: "none"}, "12345678", "1111", fault.CardAbsent},
		"no such module": {hsm.CardID{Label: "new", Module: "none"}, "12345678", "1111", fault.CardAbsent},
		"a short PIN":    {hsm.CardID{Label: "new"}, "12345678", "1", fault.PINIncorrect},
		"a short SO PIN": {hsm.CardID{Label: "new"}, "1", "1111", fault.PINIncorrect},
	} {
		if _, err := initialise(test.id, test.soPIN, test.pin); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if cards, err := x.r.Cards(t.Context()); err != nil || len(cards) != 1 {
		t.Errorf("what was refused left %v, %v", cards, err)
	}
	fresh, err := initialise(hsm.CardID{Label: "new"}, "12345678", "2222")
	if err != nil || fresh.Label != "new" || fresh.Serial == "" || fresh.Serial == old.Serial {
		t.Fatalf("%+v, %v", fresh, err)
	}
	x.login(fresh, "2222", "", nil)
	x.login(old, "1111", "", nil)
}

// A card that is pulled out is absent, and the reader works on.
func TestCareOfRemovedCard(t *testing.T) {
	x := newTries(t)
	id := newToken(t, x.cfg, "card", "1111")
	tokens := filepath.Join(filepath.Dir(filepath.Dir(x.cfg.Path)), "tokens")
	if err := errors.Join(os.Rename(tokens, tokens+".away"), os.MkdirAll(tokens, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := x.r.ChangePIN(t.Context(), id, text(t, "1111"), text(t, "2222")); !errors.Is(err, fault.CardAbsent) {
		t.Error(err)
	}
	if err := errors.Join(os.RemoveAll(tokens), os.Rename(tokens+".away", tokens)); err != nil {
		t.Fatal(err)
	}
	if n := x.used(id); n != 0 {
		t.Errorf("%d tries on a card that was not there", n)
	}
	x.login(id, "1111", "", nil)
}

// A token that says that somebody is logged in has not looked at the PIN: that is no
// success.
func TestLoggedInAlready(t *testing.T) {
	cfg := newModule(t)
	id := newToken(t, cfg, "card", "1111")
	second, err := p11.LoginTwice(cfg, id, text(t, "1111"))
	if err != nil || !errors.Is(second, fault.ModuleFault) || !strings.Contains(second.Error(), "logged in already") {
		t.Errorf("%v, %v", second, err)
	}
}
