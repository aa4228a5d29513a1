package kms_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/epochs"
)

// destroying is a service with a file of destruction keys in dir, and its log.
func (s *site) destroying(dir string, c *clock, sign kms.Signer) (*kms.Service, *bytes.Buffer, error) {
	s.t.Helper()
	log := &bytes.Buffer{}
	service := kms.New(kms.Config{
		Machine: s.machine, Store: s.store, Epochs: dir, Now: c.now, Signer: sign, Log: slog.New(slog.NewTextHandler(log, nil)), Idle: true,
	})
	s.t.Cleanup(func() { _ = service.Close() })
	return service, log, service.Load(s.t.Context())
}

func copyEpochs(t *testing.T, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(from, epochs.File))
	if err == nil {
		err = os.WriteFile(filepath.Join(to, epochs.File), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func counter(t *testing.T, dir string) uint64 {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, epochs.File))
	if err != nil {
		t.Fatal(err)
	}
	head, err := epochs.Inspect(raw)
	if err != nil {
		t.Fatal(err)
	}
	return head.Counter
}

// Keys are stored locked, and nothing loads without the file of destruction keys, or with
// another one.
func TestEpochsFile(t *testing.T) {
	s, ctx, app, dir := newSite(t), t.Context(), anyone(t), t.TempDir()
	before, _, err := s.destroying(dir, newClock(), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.create(before, 7, "chat")
	s.create(before, 8, "other")
	if _, err := before.RotateKey(ctx, "test", 7); err != nil {
		t.Fatal(err)
	}
	sealed, err := seal(ctx, before, app, "7")
	if err != nil {
		t.Fatal(err)
	}
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		service, _, err := s.destroying(dir, newClock(), nil)
		if err == nil {
			err = open(ctx, service, app, sealed)
		}
		if err != nil {
			t.Fatal(err)
		}
		k, err := service.FindKey("7")
		if err != nil {
			t.Fatal(err)
		}
		locked, err := service.Locked(k)
		if text := locked[epochs.Leaf{Index: 7, Version: 1}]; err != nil || len(locked) != 2 || !strings.HasPrefix(text, "tl1.") {
			t.Errorf("%v, %v", locked, err)
		}
		s.create(service, 0, "")
		if err := service.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := kms.New(kms.Config{Machine: s.machine, Store: s.store}).Load(ctx); !errors.Is(err, fault.BadConfig) {
		t.Errorf("without destruction keys: %v", err)
	}
	if _, _, err := s.destroying(t.TempDir(), newClock(), nil); !errors.Is(err, fault.RecordDamaged) || !strings.Contains(err.Error(), "no file") {
		t.Errorf("the file is lost: %v", err)
	}
	elsewhere, another := newSite(t), t.TempDir()
	elsewhere.machine = s.machine
	if _, _, err := elsewhere.destroying(another, newClock(), nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.destroying(another, newClock(), nil); !errors.Is(err, fault.RecordDamaged) || !strings.Contains(err.Error(), "another key store") {
		t.Errorf("another store's file: %v", err)
	}
}

// What one node destroys is erased on the others, at once or when they are back; an older
// file that is put there is noticed and brought up to date.
func TestNodesErase(t *testing.T) {
	s, ctx, app, c := newSite(t), t.Context(), anyone(t), newClock()
	dirA, dirB, dirC := t.TempDir(), t.TempDir(), t.TempDir()
	a, _, err := s.destroying(dirA, c, newSigner(t))
	if err != nil {
		t.Fatal(err)
	}
	s.create(a, 7, "chat")
	first, err := seal(ctx, a, app, "7")
	if err != nil {
		t.Fatal(err)
	}
	copyEpochs(t, dirA, dirB)
	copyEpochs(t, dirA, dirC)
	b, _, err := s.destroying(dirB, c, nil)
	if err == nil {
		err = open(ctx, b, app, first)
	}
	if err == nil {
		_, err = a.RotateKey(ctx, "test", 7)
	}
	if err == nil {
		_, err = a.ScheduleDestroy(ctx, "test", 7, 1, 7)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.days(8)
	if done, err := a.Tend(ctx); err != nil || done.Destroyed != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	if n := counter(t, dirA); n != 1 {
		t.Errorf("the counter is %d", n)
	}
	eventually(t, "the other node has erased it", func() bool { return counter(t, dirB) == 1 })
	late, log, err := s.destroying(dirC, c, nil)
	if err != nil || counter(t, dirC) != 1 || !strings.Contains(log.String(), "behind the key store") {
		t.Errorf("a node that was away is at %d: %v\n%s", counter(t, dirC), err, log)
	}
	for _, service := range []*kms.Service{a, b, late} {
		if err := open(ctx, service, app, first); !errors.Is(err, fault.KeyDestroyed) {
			t.Error(err)
		}
		if sealed, err := seal(ctx, service, app, "7"); err != nil || open(ctx, service, app, sealed) != nil {
			t.Error(err)
		}
	}
}

// The destruction keys follow a rotation of the root, and one that fails leaves them where
// they were.
func TestRotateEpochs(t *testing.T) {
	s, ctx, app, dir := newSite(t), t.Context(), anyone(t), t.TempDir()
	service, _, err := s.destroying(dir, newClock(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint32(30) {
		if _, err := service.CreateKey(ctx, "test", kms.NewKey{Index: i + 1, Algorithm: alg.AES256GCM}); err != nil {
			t.Fatal(err)
		}
	}
	sealed, err := seal(ctx, service, app, "7")
	if err != nil {
		t.Fatal(err)
	}
	generations := func() []uint32 {
		raw, err := service.EpochsCopy()
		if err != nil {
			t.Fatal(err)
		}
		head, err := epochs.Inspect(raw)
		if err != nil {
			t.Fatal(err)
		}
		return head.Generations
	}
	root := s.nextRoot()
	during := 0
	stopped, stop := context.WithCancel(ctx)
	err = service.RotateRoot(stopped, root.Manifest, s.machine.Promote, func(int, int) {
		if during = len(generations()); during == 2 {
			stop()
		}
	})
	if g := generations(); err == nil || during != 2 || len(g) != 1 || g[0] != 1 {
		t.Errorf("a rotation that failed: %d sealings meanwhile, then %v: %v", during, g, err)
	}
	if err := open(ctx, service, app, sealed); err != nil {
		t.Error(err)
	}
	s.rotateRoot(service)
	if g := generations(); len(g) != 1 || g[0] != 2 {
		t.Errorf("after the rotation: %v", g)
	}
	if err := service.Load(ctx); err != nil {
		t.Fatal(err)
	}
	if err := open(ctx, service, app, sealed); err != nil {
		t.Error(err)
	}
}
