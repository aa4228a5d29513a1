package main_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/hsm/p11/softhsm"
	"github.com/trikey/trikey/internal/secret"
)

// module returns the site's card reader.
func (s *site) module() p11.ModuleConfig {
	s.t.Helper()
	_, cards := s.modules()
	return cards[0]
}

// modules returns the libraries of the site's chip and card readers.
func (s *site) modules() (chip p11.ModuleConfig, cards []p11.ModuleConfig) {
	s.t.Helper()
	raw, err := os.ReadFile(s.path("trikey.yaml"))
	if err != nil {
		s.t.Fatal(err)
	}
	type module struct {
		Module string
		Env    map[string]string
	}
	var cfg struct {
		Machine struct {
			Chip  module
			Cards []module
		}
	}
	if err := yaml.Unmarshal(raw, &cfg); err != nil {
		s.t.Fatal(err)
	}
	for _, c := range cfg.Machine.Cards {
		cards = append(cards, p11.ModuleConfig{Path: c.Module, Env: c.Env})
	}
	return p11.ModuleConfig{Path: cfg.Machine.Chip.Module, Env: cfg.Machine.Chip.Env}, cards
}

// withCard runs f on the card of a PIN file, which stays a card of the site.
func (s *site) withCard(pinFile string, f func(ctx context.Context, card hsm.Card) error) {
	s.t.Helper()
	serial, err := os.ReadFile(s.path("pins", pinFile+".card"))
	if err != nil {
		s.t.Fatal(err)
	}
	pin := s.pin(pinFile)
	defer pin.Wipe()
	card, err := p11.NewReader(p11.ReaderConfig{Modules: []p11.ModuleConfig{s.module()}}).Login(s.t.Context(), hsm.CardID{Serial: strings.TrimSpace(string(serial))}, pin)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(f(s.t.Context(), card), card.Close()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) pin(file string) *secret.Bytes {
	s.t.Helper()
	raw, err := os.ReadFile(s.path("pins", file))
	if err != nil {
		s.t.Fatal(err)
	}
	pin, err := secret.Move(raw)
	if err != nil {
		s.t.Fatal(err)
	}
	return pin
}

// object returns the one data object on a card.
func (s *site) object(pinFile string) []byte {
	s.t.Helper()
	var value []byte
	s.withCard(pinFile, func(ctx context.Context, card hsm.Card) error {
		objects, err := card.Objects(ctx)
		if err == nil && len(objects) == 1 {
			err = objects[0].Use(func(b []byte) error { value = append(value, b...); return nil })
		}
		return err
	})
	if value == nil {
		s.t.Fatalf("card %s has no object", pinFile)
	}
	return value
}

// rewrite replaces the data object on a card.
func (s *site) rewrite(pinFile string, value []byte) {
	s.t.Helper()
	old, err := secret.Move(s.object(pinFile))
	if err != nil {
		s.t.Fatal(err)
	}
	s.withCard(pinFile, func(ctx context.Context, card hsm.Card) error { return card.Remove(ctx, old) })
	s.store(pinFile, value)
}

func (s *site) store(pinFile string, value []byte) {
	s.t.Helper()
	fresh, err := secret.Fill(len(value), func(b []byte) error { copy(b, value); return nil })
	if err != nil {
		s.t.Fatal(err)
	}
	s.withCard(pinFile, func(ctx context.Context, card hsm.Card) error { return card.Store(ctx, "trikey share", fresh) })
}

// newCard puts one more card into the site's reader.
func (s *site) newCard(name string) {
	s.t.Helper()
	s.newToken(s.module(), name, name)
}

// newToken makes a token and its PIN file, and returns its serial.
func (s *site) newToken(module p11.ModuleConfig, label, pinFile string) string {
	s.t.Helper()
	pin, err := softhsm.NewPIN(6)
	if err != nil {
		s.t.Fatal(err)
	}
	id, err := softhsm.NewToken(module, label, pin)
	if err != nil {
		s.t.Fatal(err)
	}
	err = pin.Use(func(p []byte) error { return os.WriteFile(s.path("pins", pinFile), p, 0o600) })
	if err := errors.Join(err, os.WriteFile(s.path("pins", pinFile+".card"), []byte(id.Serial), 0o600)); err != nil {
		s.t.Fatal(err)
	}
	return id.Serial
}

// TestCardFaults gives every kind of wrong card between the first good one and the rest.
// Each is refused by its own message, and what was given before stays given.
func TestCardFaults(t *testing.T) {
	t.Parallel()
	s, other := newSite(t), newSite(t)
	good := s.object("2")
	flip := func(at int) []byte {
		b := append([]byte(nil), good...)
		if at < 0 {
			at += len(b)
		}
		b[at] ^= 1
		return b
	}
	// reseal gives a share with one thing changed the right checksum.
	reseal := func(change func(*hsm.Share)) []byte {
		t.Helper()
		b, err := secret.Move(append([]byte(nil), good...))
		if err != nil {
			t.Fatal(err)
		}
		share, err := hsm.ParseShare(b)
		if err != nil {
			t.Fatal(err)
		}
		change(share)
		sealed, err := share.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		var out []byte
		_ = sealed.Use(func(b []byte) error { out = append(out, b...); return nil })
		return out
	}
	s.newCard("copy")
	s.store("copy", s.object("1"))
	s.newCard("empty")
	wrong := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(t.TempDir(), "2")
	if err := os.WriteFile(open, []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.start()
	if r := s.unseal("1"); r.code != 3 || s.state() != "collecting 1/3" {
		t.Fatalf("one card: %+v", r)
	}
	for _, test := range []struct {
		name string
		card []byte // on card 2 for this test
		pin  string
		code int
		want string
	}{
		{"wrong PIN", good, wrong, 4, "CKR_PIN_INCORRECT"},
		{"PIN file of others", good, open, 4, "chmod 600"},
		{"the same card again", good, "1", 1, "given already"},
		{"a copy of a card", good, "copy", 1, "it is a copy"},
		{"an empty card", good, "empty", 6, "holds no Trikey share"},
		{"another machine's card", other.object("2"), "2", 6, "belongs to machine"},
		{"first byte flipped", flip(0), "2", 6, "damaged"},
		{"length flipped", flip(10), "2", 6, "damaged"},
		{"manifest flipped", flip(30), "2", 6, "damaged"},
		{"share flipped", flip(-40), "2", 6, "damaged"},
		{"checksum flipped", flip(-1), "2", 6, "damaged"},
		{"cut short", good[:len(good)-10], "2", 6, "damaged"},
		{"forged share", reseal(func(x *hsm.Share) { x.Value = random(t, hsm.ShareSize) }), "2", 6, "forged"},
		{"forged index", reseal(func(x *hsm.Share) { x.Index = 3 }), "2", 6, "forged"},
		{"forged threshold", reseal(func(x *hsm.Share) { x.Manifest.Threshold = 2 }), "2", 6, "altered"},
		{"older generation", reseal(func(x *hsm.Share) { x.Manifest.Generation = 0 }), "2", 6, "generation 0"},
		{"newer generation", reseal(func(x *hsm.Share) { x.Manifest.Generation = 2 }), "2", 6, "rolled back"},
		{"another split", reseal(func(x *hsm.Share) { x.Manifest.SplitID = hsm.NewID() }), "2", 6, "split"},
	} {
		if string(test.card) != string(s.object("2")) {
			s.rewrite("2", test.card)
		}
		r := s.unseal(test.pin)
		if r.code != test.code || !strings.Contains(r.err, test.want) || s.state() != "collecting 1/3" {
			t.Errorf("%s: %+v, %s; want exit code %d and %q", test.name, r, s.state(), test.code, test.want)
		}
	}
	if r := s.unseal("2"); r.code == 0 {
		t.Errorf("a wrong card opened the machine: %+v", r)
	}
	s.rewrite("2", good)
	if r := s.unseal("2"); r.code != 3 || s.state() != "collecting 2/3" {
		t.Errorf("two cards: %+v", r)
	}
	if r := s.unseal("3"); r.code != 0 || s.state() != "open 3/3" {
		t.Errorf("three cards: %+v", r)
	}
	if r := s.unseal("3"); r.code != 0 || !strings.Contains(r.err, "open already") {
		t.Errorf("a card for an open machine: %+v", r)
	}
}

func random(t *testing.T, n int) *secret.Bytes {
	t.Helper()
	b := make([]byte, n)
	_, _ = rand.Read(b)
	s, err := secret.Move(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestInit deals a root key to five cards by the command line, any three of which open
// the machine; and what goes wrong on the way leaves nothing on the cards.
func TestInit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	// A blank machine with five cards that hold nothing.
	if err := os.Remove(s.path("data", "machine.json")); err != nil {
		t.Fatal(err)
	}
	cards := []string{"a", "b", "c", "d", "e"}
	for _, c := range cards {
		s.newCard(c)
	}
	s.start()
	if got := s.state(); got != "blank 0/0" {
		t.Errorf("at the start: %s", got)
	}
	if r := s.unseal("1"); r.code != 3 || !strings.Contains(r.err, "blank") {
		t.Errorf("unseal of a blank machine: %+v", r)
	}
	init := func(cards ...string) result {
		return s.run(append([]string{"machine", "init", "--shares", "5", "-o", "json"}, s.pins(cards...)...)...)
	}
	empty := func() {
		t.Helper()
		for _, c := range cards {
			s.withCard(c, func(ctx context.Context, card hsm.Card) error {
				objects, err := card.Objects(ctx)
				if len(objects) != 0 {
					t.Errorf("card %s carries %d objects", c, len(objects))
				}
				return err
			})
		}
	}
	for name, test := range map[string]struct {
		cards []string
		want  string
	}{
		"a card with a share": {[]string{"a", "b", "c", "d", "1"}, "holds a share already"},
		"a card twice":        {[]string{"a", "b", "c", "d", "a"}, "has its share already"},
		"too few":             {[]string{"a", "b"}, "2 PIN files"},
	} {
		if r := init(test.cards...); r.code == 0 || !strings.Contains(r.err, test.want) || s.state() != "blank 0/0" {
			t.Errorf("%s: %+v", name, r)
		}
		empty()
	}
	// The service dies in the middle: the shares it had dealt do not stand in the way
	// of the next ceremony.
	s.kill()
	s.abandonDealing(cards[:2])
	s.start()
	var record hsm.Record
	r := init(cards...)
	if err := json.Unmarshal([]byte(r.out), &record); err != nil || record.Shares != 5 || record.Threshold != 3 || len(record.Cards) != 5 {
		t.Fatalf("%+v: %v", r, err)
	}
	if r := init(cards...); r.code == 0 || !strings.Contains(r.err, "initialised already") {
		t.Errorf("initialised twice: %+v", r)
	}
	for _, three := range [][]string{{"a", "b", "c"}, {"e", "c", "a"}, {"d", "b", "e"}} {
		if r := s.unseal(three...); r.code != 0 || s.state() != "open 3/3" {
			t.Errorf("%v: %+v", three, r)
		}
		s.ok("machine", "seal")
	}
	if r := s.unseal("1", "a", "b"); r.code != 6 || s.state() != "collecting 2/3" {
		t.Errorf("with a card of before: %+v", r)
	}
}

// abandonDealing leaves shares of a ceremony that never committed on cards, as a crash
// does.
func (s *site) abandonDealing(cards []string) {
	s.t.Helper()
	root := random(s.t, hsm.RootSize)
	shares, err := hsm.Deal(root, hsm.Manifest{MachineID: hsm.NewID(), SplitID: hsm.NewID(), Generation: 1, Threshold: 3, Shares: 5, KCV: "cmac-aes:000000"})
	if err != nil {
		s.t.Fatal(err)
	}
	for i, c := range cards {
		envelope, err := shares[i].Marshal()
		if err != nil {
			s.t.Fatal(err)
		}
		_ = envelope.Use(func(b []byte) error { s.store(c, b); return nil })
	}
	raw, err := json.Marshal(object{"splits": []hsm.ID{shares[0].Manifest.SplitID}})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(s.path("data", "ceremony.json"), raw, 0o600); err != nil {
		s.t.Fatal(err)
	}
}
