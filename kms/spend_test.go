package kms_test

import (
	"errors"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/budget"
)

// TestSuspendedOnEveryNode: what one node suspends, the others refuse too, until any of
// them reopens it; and a node that begins later knows.
func TestSuspendedOnEveryNode(t *testing.T) {
	s := newSite(t)
	a, b := s.service(), s.service()
	s.create(a, 7, "chat")
	apps, err := a.Apps()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := apps.Create(t.Context(), "im", nil, grants(t, "keys=7;ops=encrypt,decrypt"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := apps.Change(t.Context(), "im", func(app *auth.App) error {
		app.Budget = &budget.Budget{Items: 2}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	call := func(service *kms.Service, c kms.Call) kms.Call {
		t.Helper()
		var app *auth.App
		eventually(t, "the node knows the app", func() bool {
			apps, err := service.Apps()
			if err != nil {
				return false
			}
			app, err = apps.Find("im")
			return err == nil && app.Budget != nil
		})
		calls := []kms.Call{c}
		if err := service.Do(t.Context(), &auth.Caller{App: app}, calls); err != nil {
			t.Fatal(err)
		}
		return calls[0]
	}
	sealed := call(a, kms.Call{Kind: hsm.Encrypt, Key: "7", Context: envelope.Context{"conversation": "c"}, Input: []byte("text")})
	if sealed.Err != nil {
		t.Fatal(sealed.Err)
	}
	open := func(service *kms.Service) error {
		t.Helper()
		return call(service, kms.Call{Kind: hsm.Decrypt, Context: envelope.Context{"conversation": "c"}, Input: sealed.Output}).Err
	}
	eventually(t, "the other node knows the key", func() bool { return open(b) == nil })
	for range 2 {
		if err := open(a); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := open(a); !errors.Is(err, fault.BudgetExceeded) {
			t.Fatalf("beyond the budget: %v", err)
		}
	}
	refused := func(service *kms.Service) func() bool {
		return func() bool { return errors.Is(open(service), fault.BudgetExceeded) }
	}
	eventually(t, "the other node knows", func() bool { _, ok := b.Suspended("im"); return ok })
	if !refused(b)() {
		t.Error("the other node decrypts")
	}
	if c := call(b, kms.Call{Kind: hsm.Encrypt, Key: "7", Input: []byte("text")}); c.Err != nil {
		t.Errorf("encryption is suspended too: %v", c.Err)
	}
	if !refused(s.service())() {
		t.Error("a node that begins later decrypts")
	}
	if err := b.Reopen(t.Context(), "test", "im"); err != nil {
		t.Fatal(err)
	}
	for _, service := range []*kms.Service{a, b} {
		eventually(t, "it is reopened there", func() bool { _, ok := service.Suspended("im"); return !ok })
		if err := open(service); err != nil {
			t.Errorf("reopened: %v", err)
		}
	}
	if err := b.Reopen(t.Context(), "test", "im"); !errors.Is(err, fault.Conflict) {
		t.Errorf("reopened twice: %v", err)
	}
	if err := b.Reopen(t.Context(), "test", "nobody"); !errors.Is(err, fault.NotFound) {
		t.Errorf("an app that is none: %v", err)
	}
}
