package p11_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/internal/fault"
)

func newResidentChip(t *testing.T) hsm.Token {
	t.Helper()
	cfg := newModule(t)
	newToken(t, cfg, "chip", "12345678")
	chip := p11.ChipConfig{Module: cfg, Label: "chip", PIN: text(t, "12345678")}
	if err := p11.ProvisionChip(chip); err != nil {
		t.Fatal(err)
	}
	c, err := p11.OpenChip(chip)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestResidentKeys(t *testing.T) {
	ctx := t.Context()
	chip := newResidentChip(t)
	load := func(key string) hsm.Wrapper {
		t.Helper()
		w, err := chip.LoadWrapper(ctx, text(t, key))
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	first, second := load("an AES key of thirty-two bytes..."[:32]), load("another key of thirty-two bytes."[:32])
	wrapped, check, err := first.Generate(ctx)
	if err != nil || len(wrapped) != hsm.WrapKWSize || len(check) != 16 {
		t.Fatalf("%d bytes, check %d bytes, %v", len(wrapped), len(check), err)
	}
	moved, err := first.Rewrap(ctx, wrapped, second)
	if err != nil || bytes.Equal(moved, wrapped) {
		t.Fatal(err)
	}
	here, err := first.Unwrap(ctx, wrapped)
	if err != nil {
		t.Fatal(err)
	}
	there, err := second.Unwrap(ctx, moved)
	if err != nil {
		t.Fatal(err)
	}
	nonce, aad := make([]byte, 12), []byte("aad")
	for _, plaintext := range []string{"", "hello", string(make([]byte, 1<<20))} {
		sealed, err := here.Seal(ctx, []byte("kept"), nonce, []byte(plaintext), aad)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := there.Open(ctx, []byte("kept"), nonce, sealed[4:], aad)
		if err != nil || string(opened) != "kept"+plaintext {
			t.Errorf("%d bytes came back, %v", len(opened), err)
		}
		sealed[len(sealed)-1] ^= 1
		if opened, err := there.Open(ctx, []byte("kept"), nonce, sealed[4:], aad); !errors.Is(err, fault.DecryptFailed) || string(opened) != "kept" {
			t.Errorf("a changed tag: %q, %v", opened, err)
		}
	}
	if err := errors.Join(here.Close(), there.Close()); err != nil {
		t.Error(err)
	}
	if _, err := here.Seal(ctx, nil, nonce, nil, aad); !errors.Is(err, fault.ChipFault) {
		t.Errorf("a key that was closed: %v", err)
	}
	wrapped[len(wrapped)-1] ^= 1
	for what, bad := range map[string][]byte{"another's": moved, "changed": wrapped, "short": moved[:32], "nothing": nil} {
		if _, err := first.Unwrap(ctx, bad); !errors.Is(err, fault.RecordDamaged) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := first.Rewrap(ctx, bad, second); !errors.Is(err, fault.RecordDamaged) {
			t.Errorf("%s, rewrapped: %v", what, err)
		}
	}
	if err := errors.Join(first.Close(), second.Close()); err != nil {
		t.Error(err)
	}
}
