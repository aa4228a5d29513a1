package kms_test

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
)

// interrupted is a machine that does something else before it opens a record.
type interrupted struct {
	hsm.Machine
	before atomic.Pointer[func()]
}

// changing marks the context of the change: the goroutine that follows the store opens
// records too, and cannot wait for its own end.
type changing struct{}

// Do is that of hsm.Machine.
func (m *interrupted) Do(ctx context.Context, ops []hsm.Op) error {
	if len(ops) > 0 && ops[0].Kind == hsm.OpenRecord && ctx.Value(changing{}) != nil {
		if f := m.before.Swap(nil); f != nil {
			(*f)()
		}
	}
	return m.Machine.Do(ctx, ops)
}

// TestChangeWhileClosing: a key that is changed while the service is unloaded and the
// machine is still open keeps its versions, and none of them is said to be destroyed.
func TestChangeWhileClosing(t *testing.T) {
	s, ctx, dir, app := newSite(t), t.Context(), t.TempDir(), anyone(t)
	machine := &interrupted{Machine: s.machine}
	service := kms.New(kms.Config{Machine: machine, Store: s.store, Epochs: dir, Log: slog.New(slog.DiscardHandler), Idle: true})
	t.Cleanup(func() { _ = service.Close() })
	if err := service.Load(ctx); err != nil {
		t.Fatal(err)
	}
	s.create(service, 7, "chat")
	sealed, err := seal(ctx, service, app, "chat")
	if err != nil {
		t.Fatal(err)
	}
	unload := service.Unload
	machine.before.Store(&unload)
	if k, err := service.ChangeKey(context.WithValue(ctx, changing{}, true), "somebody", 7, func(s *kms.Settings) error { s.Description = "other"; return nil }); !errors.Is(err, fault.Sealed) {
		t.Errorf("a change of a service that is closed: %v, %v", k, err)
	}
	if err := service.Load(ctx); err != nil {
		t.Fatal(err)
	}
	if err := open(ctx, service, app, sealed); err != nil {
		t.Errorf("what was sealed before does not open: %v", err)
	}
}
