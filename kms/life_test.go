package kms_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/policy"
)

// clock is the time that a test sets.
type clock struct{ past atomic.Int64 } // since start

func newClock() *clock { return &clock{} }

func (c *clock) now() time.Time {
	return time.Date(2026, 1, 1, 9, 0, 0, 0, time.UTC).Add(time.Duration(c.past.Load()))
}

func (c *clock) add(d time.Duration) { c.past.Add(int64(d)) }

func (c *clock) days(n int) { c.add(time.Duration(n) * 24 * time.Hour) }

// signer is an identity without a chip.
type signer struct {
	key    ed25519.PrivateKey
	broken bool
}

func newSigner(t *testing.T) *signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{key: key}
}

func (s *signer) Sign(_ context.Context, statement string, message []byte) (hsm.Signature, error) {
	if s.broken {
		return hsm.Signature{}, fault.New(fault.ChipFault, "broken")
	}
	public, _ := s.key.Public().(ed25519.PublicKey)
	return hsm.Signature{PublicKey: public, Fingerprint: hsm.Fingerprint(public), Signature: ed25519.Sign(s.key, hsm.SignedBytes(statement, message))}, nil
}

// stepped is a service that tends keys only when the test says so.
func (s *site) stepped(c *clock, sign kms.Signer) *kms.Service {
	s.t.Helper()
	service := kms.New(kms.Config{
		Machine: s.machine, Store: s.store, Signer: sign, TendEvery: time.Hour, Now: c.now,
	})
	s.t.Cleanup(func() { _ = service.Close() })
	if err := service.Load(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return service
}

func grants(t *testing.T, rule string) policy.Grants {
	t.Helper()
	g, err := policy.ParseGrants(rule)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestKeyLife goes through a key's life: after each order, what sealing answers, and what
// opening a message of each version.
func TestKeyLife(t *testing.T) {
	s := newSite(t)
	c := newClock()
	service, ctx := s.stepped(c, newSigner(t)), t.Context()
	plain := &auth.Caller{App: &auth.App{Grants: grants(t, "keys=*;ops=encrypt,decrypt,reencrypt")}}
	trusted := &auth.Caller{App: &auth.App{Grants: grants(t, "keys=*;ops=encrypt,decrypt,reencrypt,decrypt-compromised")}}
	only := &auth.Caller{App: &auth.App{Grants: grants(t, "keys=*;ops=decrypt-compromised")}}
	if _, err := service.CreateKey(ctx, "test", kms.NewKey{Index: 7, Algorithm: alg.AES256GCM, PreActive: true}); err != nil {
		t.Fatal(err)
	}
	sealed := map[uint32][]byte{} // by version
	const (
		ok = fault.Code("")
		no = fault.KeyDisabled
	)
	type order = func(context.Context, kms.Actor, uint32) (*kms.Key, error)
	of := func(f func(context.Context, kms.Actor, uint32, uint32) (*kms.Key, error), version uint32) order {
		return func(ctx context.Context, who kms.Actor, index uint32) (*kms.Key, error) {
			return f(ctx, who, index, version)
		}
	}
	destroy := func(version uint32, days int) order {
		return func(ctx context.Context, who kms.Actor, index uint32) (*kms.Key, error) {
			return service.ScheduleDestroy(ctx, who, index, version, days)
		}
	}
	for i, step := range []struct {
		name   string
		order  order
		answer fault.Code // of the order
		days   int        // that pass after it
		state  life.State
		seal   fault.Code
		open   []fault.Code // of versions 1, 2, …
	}{
		{"made", nil, ok, 0, life.PreActive, no, nil},
		{"rotate", service.RotateKey, fault.Conflict, 0, life.PreActive, no, nil},
		{"deactivate", of(service.DeactivateKey, 0), fault.Conflict, 0, life.PreActive, no, nil},
		{"activate", service.ActivateKey, ok, 0, life.Active, ok, []fault.Code{ok}},
		{"activate twice", service.ActivateKey, fault.Conflict, 0, life.Active, ok, []fault.Code{ok}},
		{"resume what runs", service.ResumeKey, fault.Conflict, 0, life.Active, ok, []fault.Code{ok}},
		{"rotate", service.RotateKey, ok, 0, life.Active, ok, []fault.Code{ok, ok}},
		{"suspend", service.SuspendKey, ok, 0, life.Suspended, no, []fault.Code{no, no}},
		{"suspend twice", service.SuspendKey, fault.Conflict, 0, life.Suspended, no, []fault.Code{no, no}},
		{"rotate while suspended", service.RotateKey, no, 0, life.Suspended, no, []fault.Code{no, no}},
		{"resume", service.ResumeKey, ok, 0, life.Active, ok, []fault.Code{ok, ok}},
		{"deactivate 1 again", of(service.DeactivateKey, 1), fault.Conflict, 0, life.Active, ok, []fault.Code{ok, ok}},
		{"deactivate 9", of(service.DeactivateKey, 9), fault.NotFound, 0, life.Active, ok, []fault.Code{ok, ok}},
		{"deactivate", of(service.DeactivateKey, 0), ok, 0, life.Deactivated, no, []fault.Code{ok, ok}},
		{"rotate", service.RotateKey, ok, 0, life.Active, ok, []fault.Code{ok, ok, ok}},
		{"compromise 1", of(service.CompromiseKey, 1), ok, 0, life.Active, ok, []fault.Code{fault.Forbidden, ok, ok}},
		{"destroy too soon", destroy(2, 6), fault.BadRequest, 0, life.Active, ok, []fault.Code{fault.Forbidden, ok, ok}},
		{"destroy too late", destroy(2, 31), fault.BadRequest, 0, life.Active, ok, []fault.Code{fault.Forbidden, ok, ok}},
		{"cancel nothing", of(service.CancelDestroy, 0), fault.Conflict, 0, life.Active, ok, []fault.Code{fault.Forbidden, ok, ok}},
		{"destroy 2", destroy(2, 7), ok, 6, life.Active, ok, []fault.Code{fault.Forbidden, no, ok}},
		{"destroy 2 twice", destroy(2, 7), fault.Conflict, 0, life.Active, ok, []fault.Code{fault.Forbidden, no, ok}},
		{"cancel", of(service.CancelDestroy, 2), ok, 0, life.Active, ok, []fault.Code{fault.Forbidden, ok, ok}},
		{"destroy 2 again", destroy(2, 7), ok, 7, life.Active, ok, []fault.Code{fault.Forbidden, fault.KeyDestroyed, ok}},
		{"cancel too late", of(service.CancelDestroy, 2), fault.Conflict, 0, life.Active, ok, []fault.Code{fault.Forbidden, fault.KeyDestroyed, ok}},
		{"compromise 2", of(service.CompromiseKey, 2), fault.KeyDestroyed, 0, life.Active, ok, []fault.Code{fault.Forbidden, fault.KeyDestroyed, ok}},
		{"destroy 3, which seals", destroy(3, 7), ok, 0, life.Suspended, no, []fault.Code{fault.Forbidden, fault.KeyDestroyed, no}},
		{"cancel", of(service.CancelDestroy, 0), ok, 0, life.Active, ok, []fault.Code{fault.Forbidden, fault.KeyDestroyed, ok}},
		{"suspend", service.SuspendKey, ok, 0, life.Suspended, no, []fault.Code{no, fault.KeyDestroyed, no}},
		{"destroy all", destroy(0, 30), ok, 29, life.Suspended, no, []fault.Code{no, fault.KeyDestroyed, no}},
		{"rotate", service.RotateKey, no, 0, life.Suspended, no, []fault.Code{no, fault.KeyDestroyed, no}},
		{"cancel", of(service.CancelDestroy, 0), ok, 0, life.Suspended, no, []fault.Code{no, fault.KeyDestroyed, no}},
		{"resume", service.ResumeKey, ok, 0, life.Active, ok, []fault.Code{fault.Forbidden, fault.KeyDestroyed, ok}},
		{"compromise", of(service.CompromiseKey, 0), ok, 0, life.Compromised, no, []fault.Code{fault.Forbidden, fault.KeyDestroyed, fault.Forbidden}},
		{"rotate", service.RotateKey, ok, 0, life.Active, ok, []fault.Code{fault.Forbidden, fault.KeyDestroyed, fault.Forbidden, ok}},
		{"destroy all", destroy(0, 7), ok, 0, life.Suspended, no, []fault.Code{no, fault.KeyDestroyed, no, no}},
		{"wait", of(service.CancelDestroy, 2), fault.Conflict, 7, life.Destroyed, fault.KeyDestroyed, []fault.Code{fault.KeyDestroyed, fault.KeyDestroyed, fault.KeyDestroyed, fault.KeyDestroyed}},
		{"rotate", service.RotateKey, fault.KeyDestroyed, 0, life.Destroyed, fault.KeyDestroyed, nil},
		{"suspend", service.SuspendKey, fault.KeyDestroyed, 0, life.Destroyed, fault.KeyDestroyed, nil},
		{"destroy", destroy(0, 7), fault.Conflict, 0, life.Destroyed, fault.KeyDestroyed, nil},
	} {
		name := fmt.Sprintf("%d %s", i, step.name)
		if step.order != nil {
			if _, err := step.order(ctx, "test", 7); fault.CodeOf(err) != step.answer {
				t.Fatalf("%s: %v, want %q", name, err, step.answer)
			}
		}
		c.days(step.days)
		if _, err := service.Tend(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		k, err := service.FindKey("7")
		if err != nil || k.State() != step.state {
			t.Fatalf("%s: the key is %s, want %s (%v)", name, k.State(), step.state, err)
		}
		out, err := seal(ctx, service, plain, "7")
		if fault.CodeOf(err) != step.seal {
			t.Fatalf("%s: sealing: %v, want %q", name, err, step.seal)
		}
		if err == nil {
			sealed[k.Newest().Version] = out
		}
		for v, want := range step.open {
			message := sealed[uint32(v+1)]
			if err := open(ctx, service, plain, message); fault.CodeOf(err) != want {
				t.Errorf("%s: opening version %d: %v, want %q", name, v+1, err, want)
			}
			// The same for re-encryption, which opens too.
			calls := []kms.Call{{Kind: hsm.Reencrypt, Input: message}}
			if err := service.Do(ctx, plain, calls); err != nil {
				t.Fatal(err)
			}
			if got := fault.CodeOf(calls[0].Err); got != want && (want != ok || got != step.seal) {
				t.Errorf("%s: re-encrypting version %d: %v, want %q", name, v+1, calls[0].Err, want)
			}
			if want != fault.Forbidden {
				continue
			}
			if err := open(ctx, service, trusted, message); err != nil {
				t.Errorf("%s: opening version %d with a grant for compromised ones: %v", name, v+1, err)
			}
			if err := open(ctx, service, only, message); !errors.Is(err, fault.Forbidden) {
				t.Errorf("%s: opening version %d with that grant alone: %v", name, v+1, err)
			}
		}
	}
	certificates, err := service.Certificates(ctx, 7)
	if err != nil || len(certificates) != 4 {
		t.Fatalf("%d certificates: %v", len(certificates), err)
	}
	// What the store holds is what the service says.
	again := s.stepped(c, nil)
	k, err := again.FindKey("7")
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range k.Versions {
		if v.State != life.Destroyed || v.Wrapped != "" || v.KCV != certificates[i].KCV || v.Marks == nil || v.Marks.Destroyed.IsZero() {
			t.Errorf("%+v", v)
		}
	}
	// Of a version that never was, no more is told than that it does not open.
	sealed[1][9] = 9
	if err := open(ctx, again, plain, sealed[1]); !errors.Is(err, fault.DecryptFailed) {
		t.Errorf("a version that never was: %v", err)
	}
}

// A destruction rewritten by a root rotation stays one.
func TestDestroyedSurvivesRotation(t *testing.T) {
	s := newSite(t)
	c := newClock()
	service, ctx := s.stepped(c, newSigner(t)), t.Context()
	s.create(service, 7, "chat")
	app := anyone(t)
	old, err := seal(ctx, service, app, "7")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []func() (*kms.Key, error){
		func() (*kms.Key, error) { return service.RotateKey(ctx, "test", 7) },
		func() (*kms.Key, error) { return service.ScheduleDestroy(ctx, "test", 7, 1, 7) },
	} {
		if _, err := f(); err != nil {
			t.Fatal(err)
		}
	}
	c.days(7)
	if done, err := service.Tend(ctx); err != nil || done.Destroyed != 1 {
		t.Fatalf("%+v %v", done, err)
	}
	young, err := seal(ctx, service, app, "7")
	if err != nil {
		t.Fatal(err)
	}
	s.rotateRoot(service)
	for _, service := range []*kms.Service{service, s.stepped(c, nil)} {
		if err := open(ctx, service, app, young); err != nil {
			t.Error(err)
		}
		if err := open(ctx, service, app, old); !errors.Is(err, fault.KeyDestroyed) {
			t.Error(err)
		}
		if all, err := service.Certificates(ctx, 7); err != nil || len(all) != 1 {
			t.Errorf("%d certificates: %v", len(all), err)
		}
	}
}

// Context, owner and reserved ranges, as the data plane and the registry of apps see them.
func TestPolicyOfKeys(t *testing.T) {
	s := newSite(t)
	service, ctx := s.service(), t.Context()
	im, other := s.app(service, "im"), s.app(service, "other")
	apps, err := service.Apps()
	if err != nil {
		t.Fatal(err)
	}
	grant := func(name, rule string) error {
		_, err := apps.Change(ctx, name, func(a *auth.App) error { a.Grants = a.Grants.Add(grants(t, rule)); return nil })
		return err
	}
	s.create(service, 8, "free")
	if err := grant(other.Name, "keys=1-20;ops=encrypt,decrypt,reencrypt"); err != nil { // before the key is owned
		t.Fatal(err)
	}
	rule, err := policy.ParseContextRule("app,chat_type:enum(dm|group)")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := service.CreateKey(ctx, "test", kms.NewKey{Index: 7, Algorithm: alg.AES256GCM, Settings: kms.Settings{Owner: "nobody"}}); !errors.Is(err, fault.NotFound) {
		t.Errorf("an owner that is not there: %v", err)
	}
	owned := kms.NewKey{Index: 7, Algorithm: alg.AES256GCM, Settings: kms.Settings{Owner: "im", Context: rule, Labels: map[string]string{"team": "chat"}}}
	if _, err := service.CreateKey(ctx, "test", owned); err != nil {
		t.Fatal(err)
	}
	if err := grant("im", "keys=1-20;ops=encrypt,decrypt,reencrypt"); err != nil {
		t.Errorf("the owner is not granted its own key: %v", err)
	}
	for _, bad := range []string{"keys=7;ops=decrypt-compromised", "keys=*;ops=decrypt-compromised", "keys=1-9;ops=decrypt-compromised"} {
		if err := grant("other", bad); !errors.Is(err, fault.Forbidden) {
			t.Errorf("%s: %v", bad, err)
		}
		if _, err := apps.Create(ctx, "third", nil, grants(t, bad), 0); !errors.Is(err, fault.Forbidden) {
			t.Errorf("a new app with %s: %v", bad, err)
		}
	}
	if err := apps.Grantable("other", grants(t, "keys=7;ops=decrypt")); !errors.Is(err, fault.Forbidden) {
		t.Errorf("a grant that the app had before: %v", err)
	}
	if err := grant("other", "keys=30-40;ops=decrypt"); err != nil {
		t.Errorf("a grant elsewhere, beside an older one: %v", err)
	}
	owner, stranger := s.find(service, im.Name), s.find(service, other.Name)
	good := envelope.Context{"app": "im", "chat_type": "dm", "more": "x"}
	call := func(app *auth.Caller, c kms.Call) kms.Call {
		t.Helper()
		calls := []kms.Call{c}
		if err := service.Do(ctx, app, calls); err != nil {
			t.Fatal(err)
		}
		return calls[0]
	}
	sealed := call(owner, kms.Call{Kind: hsm.Encrypt, Key: "7", Context: good, Input: []byte("text")})
	free := call(owner, kms.Call{Kind: hsm.Encrypt, Key: "8", Input: []byte("text")})
	if err := errors.Join(sealed.Err, free.Err); err != nil {
		t.Fatal(err)
	}
	bad := envelope.Context{"app": "im", "chat_type": "room"}
	for name, test := range map[string]struct {
		app  *auth.Caller
		call kms.Call
		want fault.Code
	}{
		"no context":            {owner, kms.Call{Kind: hsm.Encrypt, Key: "7"}, fault.ContextRequired},
		"a wrong value":         {owner, kms.Call{Kind: hsm.Encrypt, Key: "7", Context: bad}, fault.ContextRequired},
		"re-encrypt to it":      {owner, kms.Call{Kind: hsm.Reencrypt, ToKey: "7", Input: free.Output}, fault.ContextRequired},
		"re-encrypt to it well": {owner, kms.Call{Kind: hsm.Reencrypt, ToKey: "7", Input: free.Output, ToContext: good}, ""},
		"re-encrypt from it":    {owner, kms.Call{Kind: hsm.Reencrypt, ToKey: "8", Input: sealed.Output, Context: good}, ""},
		"same key, no context":  {owner, kms.Call{Kind: hsm.Reencrypt, Input: sealed.Output, Context: good}, fault.ContextRequired},
		"decrypt":               {owner, kms.Call{Kind: hsm.Decrypt, Input: sealed.Output, Context: good}, ""},
		"decrypt, no context":   {owner, kms.Call{Kind: hsm.Decrypt, Input: sealed.Output}, fault.DecryptFailed},
		"a stranger encrypts":   {stranger, kms.Call{Kind: hsm.Encrypt, Key: "7", Context: good}, fault.Forbidden},
		"a stranger decrypts":   {stranger, kms.Call{Kind: hsm.Decrypt, Input: sealed.Output, Context: good}, fault.Forbidden},
		"by index":              {stranger, kms.Call{Kind: hsm.Decrypt, Key: "7", Input: sealed.Output, Context: good}, fault.Forbidden},
		"a stranger moves away": {stranger, kms.Call{Kind: hsm.Reencrypt, ToKey: "8", Input: sealed.Output, Context: good}, fault.Forbidden},
		"a stranger moves in":   {stranger, kms.Call{Kind: hsm.Reencrypt, ToKey: "7", Input: free.Output, ToContext: good}, fault.Forbidden},
		"the free key":          {stranger, kms.Call{Kind: hsm.Decrypt, Input: free.Output}, ""},
	} {
		if got := call(test.app, test.call); fault.CodeOf(got.Err) != test.want {
			t.Errorf("%s: %v, want %q", name, got.Err, test.want)
		}
	}
	if _, err := service.Visible(stranger, "7"); !errors.Is(err, fault.Forbidden) {
		t.Errorf("a stranger sees the key: %v", err)
	}
	if _, err := service.ChangeKey(ctx, "test", 7, func(s *kms.Settings) error { s.Context.Strict = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if got := call(owner, kms.Call{Kind: hsm.Encrypt, Key: "7", Context: good}); !errors.Is(got.Err, fault.ContextRequired) {
		t.Errorf("a field too many: %v", got.Err)
	}
}

func (s *site) find(service *kms.Service, name string) *auth.Caller {
	s.t.Helper()
	apps, err := service.Apps()
	if err != nil {
		s.t.Fatal(err)
	}
	app, err := apps.Find(name)
	if err != nil {
		s.t.Fatal(err)
	}
	return &auth.Caller{App: app}
}

func TestReservedRanges(t *testing.T) {
	s := newSite(t)
	a, b, ctx := s.service(), s.service(), t.Context()
	s.app(a, "im")
	s.create(a, 50, "taken")
	reserve := func(from, to uint32, app string) error {
		return a.Reserve(ctx, "test", kms.Reservation{Range: policy.Range{From: from, To: to}, App: app})
	}
	for name, test := range map[string]struct {
		err  error
		want fault.Code
	}{
		"no app":     {reserve(1, 9, "nobody"), fault.NotFound},
		"from 0":     {reserve(0, 9, "im"), fault.BadRequest},
		"backwards":  {reserve(9, 1, "im"), fault.BadRequest},
		"with a key": {reserve(40, 60, "im"), fault.Conflict},
		"good":       {reserve(1, 9, "im"), ""},
		"give up":    {a.Unreserve(ctx, "test", policy.Range{From: 1, To: 8}), fault.NotFound},
	} {
		if fault.CodeOf(test.err) != test.want {
			t.Errorf("%s: %v, want %q", name, test.err, test.want)
		}
	}
	if err := reserve(9, 20, "im"); !errors.Is(err, fault.Conflict) {
		t.Errorf("an overlap: %v", err)
	}
	eventually(t, "the other node knows", func() bool { all, err := b.Reservations(); return err == nil && len(all) == 1 })
	eventually(t, "and its app", func() bool { apps, err := b.Apps(); return err == nil && apps.Len() == 1 })
	create := func(index uint32, owner string) (uint32, error) {
		k, err := b.CreateKey(ctx, "test", kms.NewKey{Index: index, Algorithm: alg.AES256GCM, Settings: kms.Settings{Owner: owner}})
		if err != nil {
			return 0, err
		}
		return k.Index, nil
	}
	if _, err := create(5, ""); !errors.Is(err, fault.Forbidden) {
		t.Errorf("a key without an owner in a reserved range: %v", err)
	}
	for _, test := range []struct {
		index uint32
		owner string
		want  uint32
	}{{5, "im", 5}, {0, "", 10}, {0, "im", 1}, {0, "im", 2}} {
		if got, err := create(test.index, test.owner); err != nil || got != test.want {
			t.Errorf("index %d of %q became %d: %v", test.index, test.owner, got, err)
		}
	}
	if _, err := b.ChangeKey(ctx, "test", 5, func(s *kms.Settings) error { s.Owner = ""; return nil }); !errors.Is(err, fault.Forbidden) {
		t.Errorf("an owner taken away in a reserved range: %v", err)
	}
	if err := b.Unreserve(ctx, "test", policy.Range{From: 1, To: 9}); err != nil {
		t.Fatal(err)
	}
	if got, err := create(0, ""); err != nil || got != 3 {
		t.Errorf("after the range was given up: %d %v", got, err)
	}
	if err := a.Reserve(ctx, "test", kms.Reservation{Range: policy.Range{From: 100, To: 1<<32 - 1}, App: "im"}); err != nil {
		t.Error(err)
	}
}

func TestBadSettings(t *testing.T) {
	s := newSite(t)
	service := s.service()
	many := map[string]string{}
	for i := range 17 {
		many[fmt.Sprint("l", i)] = "x"
	}
	for name, bad := range map[string]kms.Settings{
		"description": {Description: strings.Repeat("x", 257)}, "two lines": {Description: "a\nb"}, "not UTF-8": {Description: "\xff"},
		"labels": {Labels: many}, "label name": {Labels: map[string]string{"A": "x"}}, "label value": {Labels: map[string]string{"a": "x\x00"}},
	} {
		if _, err := service.CreateKey(t.Context(), "test", kms.NewKey{Algorithm: alg.AES256GCM, Settings: bad}); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
