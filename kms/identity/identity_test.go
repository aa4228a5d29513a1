package identity_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/hsm/soft"
	"github.com/trikey/trikey/kms/identity"
)

// An identity waits for an open machine, stays the same over restarts and machines of the
// root, and is another after a rotation, which leaves its key behind.
func TestIdentity(t *testing.T) {
	dir, root := t.TempDir(), hsmtest.NewRoot(t)
	e := soft.New(soft.Config{Chip: hsmtest.NewChip(t), Region: hsmtest.Region})
	t.Cleanup(func() { _ = e.Close() })
	opened := make(chan *identity.Identity)
	go func() {
		i, err := identity.Open(t.Context(), e, dir, slog.Default())
		if err != nil {
			t.Error(err)
		}
		opened <- i
	}()
	select {
	case <-opened:
		t.Fatal("a sealed machine has drawn an identity")
	case <-time.After(50 * time.Millisecond):
	}
	if err := e.Open(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	first := sign(t, <-opened)
	again, err := identity.Open(t.Context(), e, dir, slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	if second := sign(t, again); second.Fingerprint != first.Fingerprint {
		t.Error("the identity changed with a restart")
	}
	if f, err := identity.Fingerprint(dir); err != nil || f != first.Fingerprint {
		t.Errorf("the file's fingerprint is %q, %v", f, err)
	}
	next := hsmtest.NewRoot(t)
	next.Generation = root.Generation + 1
	if err := e.OpenNext(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if err := e.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := sign(t, again); after.Fingerprint == first.Fingerprint {
		t.Error("the identity of a root that is gone still signs")
	}
}

func sign(t *testing.T, i *identity.Identity) hsm.Signature {
	t.Helper()
	s, err := i.Sign(t.Context(), "test", []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check("test", []byte("message"), ""); err != nil {
		t.Error(err)
	}
	return s
}
