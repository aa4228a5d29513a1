package kms_test

import (
	"context"
	"errors"
	"testing"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/auth"
)

// deaf is a store whose changes do not arrive.
type deaf struct{ keystore.Store }

// Watch is that of keystore.Store.
func (deaf) Watch(ctx context.Context, _ string, _ int64, _ func([]keystore.Event) error) error {
	<-ctx.Done()
	return ctx.Err()
}

// What one node acknowledged, management at another node sees, though the news has not
// arrived there; and what it has seen once the data plane has too.
func TestManagementReadsTheStore(t *testing.T) {
	s := newSite(t)
	a := s.service()
	b := (&site{t, s.machine, deaf{s.store}}).service()
	s.create(a, 7, "chat")
	s.app(a, "im")
	if _, err := b.FindKey("7"); !errors.Is(err, fault.KeyNotFound) {
		t.Fatalf("the test is wrong, the news arrived: %v", err)
	}
	for _, ref := range []string{"chat", "7"} {
		if k, fresh, err := b.ReadKey(t.Context(), ref); err != nil || !fresh || k.Index != 7 {
			t.Errorf("%s: %+v %t %v", ref, k, fresh, err)
		}
	}
	if _, err := a.RotateKey(t.Context(), "test", 7); err != nil {
		t.Fatal(err)
	}
	if k, fresh, err := b.ReadKey(t.Context(), "7"); err != nil || !fresh || k.Newest().Version != 2 {
		t.Errorf("after a rotation: %+v %t %v", k, fresh, err)
	}
	if k, err := b.FindKey("7"); err != nil || k.Newest().Version != 2 {
		t.Errorf("what was read was not taken in: %+v %v", k, err)
	}
	for _, ref := range []string{"8", "other", "not a name", "99999999999"} {
		if _, _, err := b.ReadKey(t.Context(), ref); !errors.Is(err, fault.KeyNotFound) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	apps, err := a.Apps()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := apps.Change(t.Context(), "im", func(app *auth.App) error { app.Disabled = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if app, fresh, err := b.ReadApp(t.Context(), "im"); err != nil || !fresh || !app.Disabled {
		t.Errorf("the app: %+v %t %v", app, fresh, err)
	}
	if _, _, err := b.ReadApp(t.Context(), "none"); !errors.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

// checkAway is what management reads of a node whose store is away.
func checkAway(t *testing.T, service *kms.Service) {
	t.Helper()
	if k, fresh, err := service.ReadKey(t.Context(), "chat"); err != nil || fresh || k.Index != 7 {
		t.Errorf("the key, while the store is away: %+v %t %v", k, fresh, err)
	}
	if app, fresh, err := service.ReadApp(t.Context(), "im"); err != nil || fresh || app.Name != "im" {
		t.Errorf("the app, while the store is away: %+v %t %v", app, fresh, err)
	}
	_, _, errKey := service.ReadKey(t.Context(), "999")
	_, _, errApp := service.ReadApp(t.Context(), "other")
	for _, err := range []error{errKey, errApp} {
		if !errors.Is(err, fault.Unavailable) {
			t.Errorf("what another node may have made meanwhile: %v", err)
		}
	}
}
