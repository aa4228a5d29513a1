package p11_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/hsm/p11/softhsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

func text(t testing.TB, s string) *secret.Bytes {
	t.Helper()
	b, err := secret.Move([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Wipe)
	return b
}

func newModule(t testing.TB) p11.ModuleConfig {
	t.Helper()
	cfg, err := softhsm.NewReader(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func newToken(t testing.TB, cfg p11.ModuleConfig, label, pin string) hsm.CardID {
	t.Helper()
	id, err := softhsm.NewToken(cfg, label, text(t, pin))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestReader(t *testing.T) {
	cfg := newModule(t)
	r := newReader(cfg)
	if cards, err := r.Cards(t.Context()); err != nil || len(cards) != 0 {
		t.Fatalf("an empty reader has %v, %v", cards, err)
	}
	one := newToken(t, cfg, "card", "1111")
	two := newToken(t, cfg, "card", "2222") // labels need not differ
	cards, err := r.Cards(t.Context())
	if err != nil || len(cards) != 2 || one.Serial == two.Serial || !cards[0].Initialised {
		t.Fatalf("%+v, %v", cards, err)
	}
	for _, test := range []struct {
		id   hsm.CardID
		pin  string
		want error
	}{
		{two, "2222", nil},
		{hsm.CardID{Serial: one.Serial}, "1111", nil},
		{one, "2222", fault.PINIncorrect},
		{one, "", fault.PINIncorrect},
		{hsm.CardID{Serial: "none"}, "1111", fault.CardAbsent},
		{hsm.CardID{Module: "elsewhere", Serial: one.Serial}, "1111", fault.CardAbsent},
	} {
		c, err := r.Login(t.Context(), test.id, text(t, test.pin))
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("login to %+v with %q: %v", test.id, test.pin, err)
		}
		if err == nil {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestCardObjects(t *testing.T) {
	cfg := newModule(t)
	id := newToken(t, cfg, "card", "1111")
	r := newReader(cfg)
	c := login(t, r, id, "1111")
	if err := errors.Join(c.Store(t.Context(), "share", text(t, "one")), c.Store(t.Context(), "share", text(t, "two"))); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = login(t, r, id, "1111")
	if got := values(t, c); len(got) != 2 || got[0] == got[1] {
		t.Errorf("read back %q", got)
	}
	if err := errors.Join(c.Remove(t.Context(), text(t, "one")), c.Remove(t.Context(), text(t, "none"))); err != nil {
		t.Error(err)
	}
	if got := values(t, c); len(got) != 1 || got[0] != "two" {
		t.Errorf("after removal: %q", got)
	}
	// While a card is open the reader is taken, and waiting for it can be given up.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Cards(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a reader that is taken: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestCardRemoved(t *testing.T) {
	cfg := newModule(t)
	id := newToken(t, cfg, "card", "1111")
	r := newReader(cfg)
	c, err := r.Login(t.Context(), id, text(t, "1111"))
	if err != nil {
		t.Fatal(err)
	}
	tokens := filepath.Join(filepath.Dir(filepath.Dir(cfg.Path)), "tokens")
	if err := os.Rename(tokens, tokens+".away"); err != nil {
		t.Fatal(err)
	}
	if err := c.Store(t.Context(), "share", text(t, "value")); err == nil {
		t.Error("a card that is gone took a share")
	}
	_ = c.Close() // an error is as good as none: the card is gone
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Login(t.Context(), id, text(t, "1111")); !errors.Is(err, fault.CardAbsent) {
		t.Errorf("login to a card that is gone: %v", err)
	}
}

func TestModules(t *testing.T) {
	a, b := newModule(t), newModule(t)
	idA, idB := newToken(t, a, "a", "1111"), newToken(t, b, "b", "2222")
	r := newReader(a, b)
	if cards, err := r.Cards(t.Context()); err != nil || len(cards) != 2 {
		t.Errorf("two modules: %v, %v", cards, err)
	}
	for id, pin := range map[hsm.CardID]string{idA: "1111", {Serial: idB.Serial}: "2222"} {
		c, err := r.Login(t.Context(), id, text(t, pin))
		if err != nil {
			t.Errorf("%v: %v", id, err)
			continue
		}
		if _, err := newReader(p11.ModuleConfig{Path: id.Module}).Cards(t.Context()); id.Module != "" && !errors.Is(err, fault.ModuleFault) {
			t.Errorf("a module with two owners: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	noModule := filepath.Join(t.TempDir(), "no.so")
	if err := os.WriteFile(noModule, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{noModule, noModule + ".missing"} {
		if _, err := newReader(p11.ModuleConfig{Path: path}).Cards(t.Context()); !errors.Is(err, fault.ModuleFault) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func newChip(t testing.TB) (*p11.Chip, p11.ChipConfig) {
	t.Helper()
	cfg := p11.ChipConfig{Module: newModule(t), Label: "chip", PIN: text(t, "3333")}
	newToken(t, cfg.Module, "chip", "3333")
	if _, err := p11.OpenChip(cfg); !errors.Is(err, fault.ChipFault) || !strings.Contains(err.Error(), "provisioned") {
		t.Fatalf("a chip without keys: %v", err)
	}
	if err := p11.ProvisionChip(cfg); err != nil {
		t.Fatal(err)
	}
	c, err := p11.OpenChip(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, cfg
}

func TestChip(t *testing.T) {
	c, cfg := newChip(t)
	if !strings.Contains(c.Describe(), "for tests only") {
		t.Errorf("a SoftHSM describes itself as %q", c.Describe())
	}
	key := text(t, strings.Repeat("k", 32))
	sealed, err := c.Seal(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	open := func(c *p11.Chip) {
		t.Helper()
		again, err := c.Open(t.Context(), sealed)
		if err != nil || !again.Equal(key) {
			t.Errorf("opened %v, %v", again, err)
		}
		again.Wipe()
	}
	open(c)
	for _, change := range []int{0, 20, len(sealed) - 1} {
		bad := bytes.Clone(sealed)
		bad[change] ^= 1
		if _, err := c.Open(t.Context(), bad); !errors.Is(err, fault.DecryptFailed) {
			t.Errorf("byte %d changed: %v", change, err)
		}
	}
	open(c)
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if _, err := c.Open(t.Context(), sealed); !errors.Is(err, fault.ChipFault) {
		t.Errorf("after Close: %v", err)
	}
	if err := p11.ProvisionChip(cfg); !errors.Is(err, fault.Conflict) {
		t.Errorf("provisioned twice: %v", err)
	}
	c, err = p11.OpenChip(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	open(c) // the chip that sealed it, after a restart
	for what, bad := range map[string]p11.ChipConfig{
		"wrong PIN": {Module: newModule(t), Label: "none", PIN: cfg.PIN},
	} {
		if _, err := p11.OpenChip(bad); !errors.Is(err, fault.CardAbsent) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestChipKey(t *testing.T) {
	c, _ := newChip(t)
	key := text(t, strings.Repeat("w", 32))
	loaded, err := c.Load(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, 12)
	_, _ = rand.Read(nonce)
	plaintext := text(t, "business key of 32 bytes, in all")
	sealed, err := loaded.Seal(t.Context(), nonce, plaintext, []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	// The chip computes what anybody with the key would.
	want := gcmSeal(t, strings.Repeat("w", 32), nonce, "business key of 32 bytes, in all", "aad")
	if !bytes.Equal(sealed, want) {
		t.Errorf("the chip sealed %x, want %x", sealed, want)
	}
	if _, err := loaded.Open(t.Context(), nonce, sealed, []byte("aae")); !errors.Is(err, fault.DecryptFailed) {
		t.Errorf("other additional data: %v", err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 20 {
				again, err := loaded.Open(t.Context(), nonce, sealed, []byte("aad"))
				if err != nil || !again.Equal(plaintext) {
					t.Errorf("%v, %v", again, err)
					return
				}
				again.Wipe()
			}
		})
	}
	wg.Wait()
	if err := loaded.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := loaded.Open(t.Context(), nonce, sealed, []byte("aad")); err == nil {
		t.Error("a key that was destroyed opens")
	}
}

// The chip is closed under callers at work: they fail, and nothing crashes.
func TestCloseDuringUse(t *testing.T) {
	c, _ := newChip(t)
	key := text(t, strings.Repeat("k", 32))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				if _, err := c.Seal(t.Context(), key); err != nil {
					return
				}
			}
		})
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func BenchmarkChipKeyOpen(b *testing.B) {
	c, _ := newChip(b)
	loaded, err := c.Load(b.Context(), text(b, strings.Repeat("w", 32)))
	if err != nil {
		b.Fatal(err)
	}
	nonce := make([]byte, 12)
	sealed, err := loaded.Seal(b.Context(), nonce, text(b, strings.Repeat("k", 32)), nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		k, err := loaded.Open(b.Context(), nonce, sealed, nil)
		if err != nil {
			b.Fatal(err)
		}
		k.Wipe()
	}
}

func newReader(modules ...p11.ModuleConfig) *p11.Reader {
	return p11.NewReader(p11.ReaderConfig{Modules: modules})
}
