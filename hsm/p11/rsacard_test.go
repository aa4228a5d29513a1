package p11_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// sealing returns the module with its cards in the form that seals shares to a key.
func sealing(t testing.TB, cfg p11.ModuleConfig, oaep string) p11.ModuleConfig {
	t.Helper()
	cfg.Form, cfg.OAEP, cfg.Shares = p11.FormRSA, oaep, filepath.Join(t.TempDir(), "card-shares")
	return cfg
}

// sealedFile returns the one file of sealed shares.
func sealedFile(t testing.TB, cfg p11.ModuleConfig) string {
	t.Helper()
	list, err := os.ReadDir(cfg.Shares)
	if err != nil || len(list) != 1 {
		t.Fatalf("sealed shares: %v, %v", list, err)
	}
	return filepath.Join(cfg.Shares, list[0].Name())
}

// A card that seals is used as one that holds: both implementations, every hash each
// knows.
func TestSealedCard(t *testing.T) {
	soft := newModule(t)
	softID := newToken(t, soft, "soft", "1111")
	first, firstID := newTPM(t, "1111")
	second, secondID := newTPM(t, "1111")
	for _, test := range []struct {
		name string
		cfg  p11.ModuleConfig
		id   hsm.CardID
	}{
		{"SoftHSM sha1", sealing(t, soft, "sha1"), softID},
		{"TPM sha1", sealing(t, first.Module, "sha1"), firstID},
		{"TPM sha256", sealing(t, second.Module, "sha256"), secondID},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newReader(test.cfg)
			share := envelope(t)
			with := func(f func(c hsm.Card) error) {
				t.Helper()
				c := login(t, r, test.id, "1111")
				if err := errors.Join(f(c), c.Close()); err != nil {
					t.Fatal(err)
				}
			}
			holds := func(want ...string) {
				t.Helper()
				with(func(c hsm.Card) error {
					if got := values(t, c); strings.Join(got, "|") != strings.Join(want, "|") {
						t.Errorf("holds %q, want %q", got, want)
					}
					return nil
				})
			}
			holds()
			with(func(c hsm.Card) error {
				return errors.Join(c.Store(t.Context(), "share", text(t, share)), c.Store(t.Context(), "share", text(t, "other")))
			})
			holds(share, "other")
			path := sealedFile(t, test.cfg)
			raw, err := os.ReadFile(path)
			if err != nil || bytes.Contains(raw, []byte("TKSHARE1")) || bytes.Contains(raw, []byte("other")) {
				t.Errorf("the file tells what is in it: %q, %v", raw, err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			with(func(c hsm.Card) error {
				return errors.Join(c.Remove(t.Context(), text(t, share)), c.Remove(t.Context(), text(t, "none")))
			})
			holds("other")
			with(func(c hsm.Card) error { return c.Remove(t.Context(), text(t, "other")) })
			holds()
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a file of nothing is left: %v", err)
			}
			with(func(c hsm.Card) error { return c.Store(t.Context(), "share", text(t, share)) }) // the key is there already
			holds(share)
			if _, err := r.Login(t.Context(), test.id, text(t, "2222")); !errors.Is(err, fault.PINIncorrect) {
				t.Errorf("a wrong PIN: %v", err)
			}
		})
	}
}

// Whatever is changed in the file is noticed, by the checksum or, where that was made
// to fit, by the card and the tag.
func TestSealedDamage(t *testing.T) {
	cfg := sealing(t, newModule(t), "sha1")
	one, two := newToken(t, cfg, "one", "1111"), newToken(t, cfg, "two", "1111")
	r := newReader(cfg)
	c := login(t, r, one, "1111")
	if err := c.Store(t.Context(), "share", text(t, envelope(t))); err != nil {
		t.Fatal(err)
	}
	path := sealedFile(t, cfg)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// refused reads what is in a card's file.
	refused := func(c hsm.Card, path string, content []byte, want fault.Code) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, before := secret.Usage()
		if _, err := c.Objects(t.Context()); !errors.Is(err, want) {
			t.Errorf("%v, want %s", err, want)
		}
		if err := c.Store(t.Context(), "share", text(t, "more")); want != fault.CardDamaged && !errors.Is(err, want) {
			t.Errorf("stored beside it: %v", err)
		}
		if _, after := secret.Usage(); after > before+64 { // what text holds
			t.Errorf("%d bytes of protected memory are left", after-before)
		}
	}
	fit := func(b []byte) []byte {
		body := b[:len(b)-sha256.Size]
		sum := sha256.Sum256(body)
		return append(bytes.Clone(body), sum[:]...)
	}
	entry := 8 + 1 + len(one.Serial) + 32
	for i := range good {
		if i%7 != 0 && i > entry+3 && i < len(good)-40 {
			continue // a sample of the long ciphertexts
		}
		bad := bytes.Clone(good)
		bad[i] ^= 1
		refused(c, path, bad, fault.CardDamaged)
		switch in := i - 9; {
		case i >= len(good)-sha256.Size:
		case i == 8 || in >= 0 && in < len(one.Serial)+32:
			if i != 8 { // another serial, or another key
				refused(c, path, fit(bad), fault.CardMismatch)
			}
		default:
			refused(c, path, fit(bad), fault.CardDamaged)
		}
	}
	for _, n := range []int{0, 8, 50, entry, len(good) - 1} {
		refused(c, path, good[:n], fault.CardDamaged)
	}
	refused(c, path, append(bytes.Clone(good), make([]byte, 1<<20)...), fault.CardDamaged)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	// Another card is not fooled by the file, nor by the file made out to it.
	c = login(t, r, two, "1111")
	theirs := strings.Replace(path, one.Serial, two.Serial, 1)
	refused(c, theirs, good, fault.CardMismatch)
	forged := fit(bytes.Replace(good, []byte(one.Serial), []byte(two.Serial), 1))
	refused(c, theirs, forged, fault.CardMismatch) // without a key of its own
	if err := errors.Join(os.Remove(theirs), c.Store(t.Context(), "share", text(t, "own"))); err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile(theirs)
	if err != nil {
		t.Fatal(err)
	}
	refused(c, theirs, forged, fault.CardMismatch) // of another key
	refused(c, theirs, fit(append(bytes.Clone(own[:entry]), good[entry:]...)), fault.CardDamaged)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// What is configured wrongly is said, and leaves nothing behind.
func TestSealedConfig(t *testing.T) {
	soft := newModule(t)
	id := newToken(t, soft, "soft", "1111")
	for name, cfg := range map[string]p11.ModuleConfig{
		"form":      {Path: soft.Path, Env: soft.Env, Form: "disk"},
		"hash":      {Path: soft.Path, Env: soft.Env, OAEP: "md5"},
		"directory": {Path: soft.Path, Env: soft.Env, Form: p11.FormRSA},
	} {
		if err := cfg.Check(); !errors.Is(err, fault.BadConfig) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := newReader(cfg).Cards(t.Context()); !errors.Is(err, fault.BadConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg := sealing(t, soft, "sha256") // which SoftHSM does not know
	c := login(t, newReader(cfg), id, "1111")
	if err := c.Store(t.Context(), "share", text(t, "value")); !errors.Is(err, fault.ModuleFault) || !strings.Contains(err.Error(), "oaep") {
		t.Errorf("a hash that the card does not know: %v", err)
	}
	if got := values(t, c); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
	cfg.OAEP = "sha1"
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = login(t, newReader(cfg), id, "1111")
	if err := c.Store(t.Context(), "share", text(t, "value")); err != nil {
		t.Errorf("with another hash: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Key = "another" // which the card does not have: nothing is made beside it
	c = login(t, newReader(cfg), id, "1111")
	if _, err := c.Objects(t.Context()); !errors.Is(err, fault.CardMismatch) {
		t.Errorf("another key: %v", err)
	}
	if err := c.Store(t.Context(), "share", text(t, "value")); !errors.Is(err, fault.CardMismatch) {
		t.Errorf("stored under another key: %v", err)
	}
	if err := os.RemoveAll(cfg.Shares); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.Shares, nil, 0o600); err != nil { // where a directory should be
		t.Fatal(err)
	}
	if _, err := c.Objects(t.Context()); !errors.Is(err, fault.CardDamaged) {
		t.Errorf("a directory that cannot be read: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
