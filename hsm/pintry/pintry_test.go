package pintry_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/pintry"
	"github.com/trikey/trikey/internal/fault"
)

// token is a card that locks at its third wrong PIN in a row. The token is a fake:
// SoftHSM, on which everything else is tested, never locks and never tells that one try
// is left.
type token struct {
	t     *testing.T
	tells bool // by its flags how many tries are left
	wrong int
	tried int
}

func (k *token) info() hsm.CardInfo {
	c := hsm.CardInfo{CardID: hsm.CardID{Module: "m", Serial: "s", Label: "l"}, Initialised: true}
	if k.tells {
		c.PINCountLow, c.PINFinalTry, c.PINLocked = k.wrong > 0, k.wrong == 2, k.wrong >= 3
	}
	return c
}

func (k *token) try(right bool) func() error {
	return func() error {
		k.tried++
		switch {
		case k.wrong >= 3:
			return fault.PINLocked
		case right:
			k.wrong = 0
			return nil
		}
		k.wrong++
		return fault.PINIncorrect
	}
}

func no() bool { return false }

func open(t *testing.T, dir string) *pintry.File {
	t.Helper()
	f, err := pintry.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A card is never locked without a confirmation, whether it tells its tries or not, and
// whatever the machine forgets in between.
func TestNeverLocks(t *testing.T) {
	for _, tells := range []bool{false, true} {
		dir := t.TempDir()
		k := &token{t: t, tells: tells}
		for i, want := range []error{fault.PINIncorrect, fault.PINIncorrect, nil, nil, nil} {
			if want == nil {
				want = map[bool]error{false: fault.PINTriesSpent, true: fault.PINFinalTry}[tells]
			}
			err := pintry.Login(open(t, dir), k.info(), no, k.try(i > 1))
			if !errors.Is(err, want) {
				t.Errorf("tells %v, try %d: %v", tells, i+1, err)
			}
			if i > 1 && (k.tried != 2 || !strings.Contains(err.Error(), "--last-try s")) {
				t.Errorf("tells %v: the card was touched %d times: %v", tells, k.tried, err)
			}
		}
		asked := 0
		yes := func() bool { asked++; return true }
		if err := pintry.Login(open(t, dir), k.info(), yes, k.try(true)); err != nil || asked != 1 || k.wrong != 0 {
			t.Errorf("a last try with the right PIN: %v, asked %d times", err, asked)
		}
		if err := pintry.Login(open(t, dir), k.info(), yes, k.try(true)); err != nil || asked != 1 {
			t.Errorf("after it: %v; a confirmation was spent without need", err)
		}
		if n := open(t, dir).Used(k.info().CardID); n != 0 {
			t.Errorf("%d tries after a success", n)
		}
	}
}

// A card that has locked is not tried, whatever is confirmed.
func TestLocked(t *testing.T) {
	k := &token{t: t, tells: true, wrong: 3}
	yes := func() bool { t.Error("asked for a confirmation that cannot help"); return true }
	if err := pintry.Login(pintry.InMemory(), k.info(), yes, k.try(true)); !errors.Is(err, fault.PINLocked) || k.tried != 0 {
		t.Errorf("%v, tried %d times", err, k.tried)
	}
}

// A wrong try at another machine counts, when the card tells of it.
func TestTriedElsewhere(t *testing.T) {
	k := &token{t: t, wrong: 1}
	tries := pintry.InMemory()
	info := k.info()
	info.PINCountLow = true
	for _, want := range []error{fault.PINIncorrect, fault.PINTriesSpent} {
		if err := pintry.Login(tries, info, no, k.try(false)); !errors.Is(err, want) {
			t.Errorf("%v, not %v", err, want)
		}
	}
	if k.wrong != 2 {
		t.Errorf("%d wrong tries", k.wrong)
	}
}

// The count is on the disk before the card sees the PIN: a process that is killed at
// that moment has counted.
func TestCountedFirst(t *testing.T) {
	dir := t.TempDir()
	id := (&token{}).info().CardID
	for i := range 3 {
		err := pintry.Login(open(t, dir), hsm.CardInfo{CardID: id}, no, func() error {
			if n := open(t, dir).Used(id); n != i+1 {
				t.Errorf("%d tries are on the disk during try %d", n, i+1)
			}
			return fault.CardAbsent // whether the card saw the PIN is not known
		})
		want := fault.CardAbsent
		if i == 2 {
			want = fault.PINTriesSpent
		}
		if !errors.Is(err, want) {
			t.Errorf("try %d: %v", i+1, err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, pintry.FileName))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	other := id
	other.Label = "another PIN of the card"
	elsewhere := id
	elsewhere.Module = "another way to it"
	if f := open(t, dir); f.Used(other) != 0 || f.Used(elsewhere) != 2 {
		t.Errorf("another PIN has %d tries, another module %d", f.Used(other), f.Used(elsewhere))
	}
}

// A try that cannot be counted is not made.
func TestNotCounted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	tries := open(t, dir) // there is no such directory
	k := &token{t: t}
	if err := pintry.Login(tries, k.info(), no, k.try(true)); !errors.Is(err, fault.Internal) || k.tried != 0 || tries.Used(k.info().CardID) != 0 {
		t.Errorf("%v, tried %d times", err, k.tried)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	err := pintry.Login(tries, k.info(), no, func() error { return os.RemoveAll(dir) })
	if !errors.Is(err, fault.Internal) {
		t.Errorf("a success that cannot be noted: %v", err)
	}
}

func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	for _, content := range []string{"", "{", `{"cards":[{"serial":"s","label":"l","tries":-1}]}`, `{"x":1}`} {
		if err := os.WriteFile(filepath.Join(dir, pintry.FileName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := pintry.Open(dir); !errors.Is(err, fault.RecordDamaged) {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// A confirmation is for one card, and for one try.
func TestConfirmation(t *testing.T) {
	ctx := hsm.ConfirmLastTry(context.Background(), "s")
	if hsm.LastTry(ctx) != "s" || hsm.SpendLastTry(ctx, "r") || !hsm.SpendLastTry(ctx, "s") || hsm.SpendLastTry(ctx, "s") {
		t.Error("a confirmation is not good for exactly one try of its card")
	}
	if ctx := hsm.ConfirmLastTry(context.Background(), ""); hsm.LastTry(ctx) != "" || hsm.SpendLastTry(ctx, "") {
		t.Error("a card without a serial is confirmed by nothing")
	}
}
