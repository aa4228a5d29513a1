package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm"
)

// secretFile writes a PIN file.
func secretFile(t *testing.T, pin string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pin-of-a-test")
	if err := os.WriteFile(path, []byte(pin), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// serial returns a card's serial.
func (s *site) serial(pinFile string) string {
	s.t.Helper()
	raw, err := os.ReadFile(s.path("pins", pinFile+".card"))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}

// wants runs a command that must end with a code and say something.
func (s *site) wants(code int, want string, args ...string) {
	s.t.Helper()
	if r := s.run(args...); r.code != code || !strings.Contains(r.out+r.err, want) {
		s.t.Errorf("trikey %s: %+v; want exit code %d and %q", strings.Join(args, " "), r, code, want)
	}
}

// tries returns the tries of a card that card list tells.
func (s *site) tries(serial string) int {
	s.t.Helper()
	var cards []hsm.CardInfo
	s.ok("card", "list", "-o", "json").json(s.t, &cards)
	for _, c := range cards {
		if c.Serial == serial {
			return c.PINTries
		}
	}
	s.t.Fatalf("no card %s in %+v", serial, cards)
	return 0
}

// The machine stops at two wrong PINs, also when it is killed in between, until a person
// names the card.
func TestCarefulLogin(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	serial := s.serial("1")
	wrong := secretFile(t, "00000000x")
	if err := os.WriteFile(wrong+".card", []byte(serial), 0o600); err != nil {
		t.Fatal(err)
	}
	inspect := func(pin string, more ...string) []string {
		return append([]string{"card", "inspect", "--pin-file", pin}, more...)
	}
	right := s.path("pins", "1")
	s.start()
	s.wants(4, "1 try left before this machine stops asking", inspect(wrong)...)
	s.kill()
	s.start()
	s.wants(4, "CKR_PIN_INCORRECT", inspect(wrong)...)
	s.wants(0, "needs a confirmation", "card", "list")
	s.kill()
	info, err := os.Stat(s.path("data", "pin-tries.json"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	s.start()
	s.wants(4, "--last-try "+serial, inspect(right)...)
	s.wants(4, "--last-try "+serial, inspect(right, "--last-try", s.serial("2"))...)
	if n := s.tries(serial); n != 2 {
		t.Errorf("%d tries", n)
	}
	// Two PIN files for the card, one confirmation: one try.
	s.wants(4, "CKR_PIN_INCORRECT", append(inspect(wrong, "--last-try", serial), s.pins("1")...)...)
	if n := s.tries(serial); n != 3 {
		t.Errorf("%d tries", n)
	}
	if r := s.unseal("2", "3"); r.code != 3 || s.state() != "collecting 2/3" {
		t.Errorf("the other cards: %+v", r)
	}
	s.wants(0, "open", append([]string{"machine", "unseal", "--last-try", serial}, s.pins("1")...)...)
	if n := s.tries(serial); n != 0 {
		t.Errorf("%d tries after a success", n)
	}
	// What says how many tries were made must not be guessed.
	s.kill()
	if err := os.WriteFile(s.path("data", "pin-tries.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.run("serve"); r.code == 0 || !strings.Contains(r.err, "pin-tries.json") {
		t.Errorf("with a damaged count: %+v", r)
	}
}

func TestCardFormat(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.newCard("other")
	s.start()
	serial := s.serial("1")
	format := func(card, pin string, more ...string) []string {
		return append([]string{"card", "format", card, "--pin-file", s.path("pins", pin)}, more...)
	}
	s.wants(2, "name the card", "card", "format")
	s.wants(5, "not in a reader", format("none", "1")...)
	s.wants(2, "nothing was tried", format(serial, "2")...)
	s.wants(4, "--force "+serial, format(serial, "1")...)
	s.wants(4, "--force "+serial, format(serial, "1", "--force", s.serial("2"))...)
	s.wants(2, "for --init only", format(serial, "1", "--label", "x")...)
	s.wants(2, "no terminal", "card", "format", serial)
	s.wants(0, "removed 0", format("other", "other")...)
	if len(s.object("1")) == 0 {
		t.Error("what was refused took the share")
	}
	s.wants(0, "removed 1", format(serial, "1", "--force", serial)...)
	if r := s.unseal("1"); r.code != 6 || !strings.Contains(r.err, "was erased") {
		t.Errorf("a formatted card: %+v", r)
	}
}

func TestCardInit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	so, pin := secretFile(t, "987654321"), secretFile(t, "246810")
	s.wants(2, "--label", "card", "format", "--init", "--so-pin-file", so, "--pin-file", pin)
	s.wants(2, "no terminal", "card", "format", "--init", "--label", "x", "--so-pin-file", so)
	s.wants(1, "a token already", "card", "format", "--init", "--label", "x", "--so-pin-file", so, "--pin-file", pin, s.serial("1"))
	s.wants(4, "too short", "card", "format", "--init", "--label", "x", "--so-pin-file", so, "--pin-file", secretFile(t, "1"))
	r := s.ok("card", "format", "--init", "--label", "new card", "--so-pin-file", so, "--pin-file", pin, "-o", "json")
	var id hsm.CardID
	if err := json.Unmarshal([]byte(r.out), &id); err != nil || id.Label != "new card" || id.Serial == "" {
		t.Fatalf("%+v: %v", r, err)
	}
	if err := os.WriteFile(pin+".card", []byte(id.Serial), 0o600); err != nil {
		t.Fatal(err)
	}
	s.wants(0, "holds no Trikey share", "card", "inspect", "--pin-file", pin)
	for _, secret := range []string{"987654321", "246810"} {
		if strings.Contains(fmt.Sprint(r)+s.log.String(), secret) {
			t.Error("a PIN was printed")
		}
	}
}

func TestCardChangePIN(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	serial := s.serial("1")
	fresh := secretFile(t, "13579111")
	change := func(old, fresh string) []string {
		return []string{"card", "change-pin", "trikey-card-1", "--pin-file", old, "--new-pin-file", fresh}
	}
	old := s.path("pins", "1")
	s.wants(2, "accepts 1 arg", "card", "change-pin")
	s.wants(2, "no terminal", "card", "change-pin", serial, "--pin-file", old)
	s.wants(2, "nothing was tried", change(s.path("pins", "2"), fresh)...)
	s.wants(2, "empty", change(old, secretFile(t, ""))...)
	s.wants(4, "1 try left", change(secretFile(t, "00000000x"), fresh)...)
	s.wants(0, "is changed", change(old, fresh)...)
	s.wants(4, "CKR_PIN_INCORRECT", "machine", "unseal", "--pin-file", old)
	if err := os.WriteFile(fresh+".card", []byte(serial), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.unseal(fresh, "2", "3"); r.code != 0 || s.state() != "open 3/3" {
		t.Errorf("with the new PIN: %+v", r)
	}
	s.kill()
	s.wants(3, "no machine answers", change(fresh, old)...)
}

// A card that is pulled out is told of, and nothing is counted or changed.
func TestCardPulled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	serial, tokens := s.serial("1"), s.path("cards", "tokens")
	if err := os.Rename(tokens, tokens+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	pin := s.path("pins", "1")
	s.wants(5, "insert it", "card", "format", serial, "--pin-file", pin)
	s.wants(5, "insert it", "card", "change-pin", serial, "--pin-file", pin, "--new-pin-file", secretFile(t, "13579111"))
	if err := os.Remove(tokens); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tokens+".away", tokens); err != nil {
		t.Fatal(err)
	}
	if n := s.tries(serial); n != 0 {
		t.Errorf("%d tries of a card that was not there", n)
	}
	s.wants(0, "share 1", "card", "inspect", "--pin-file", pin)
}
