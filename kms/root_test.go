package kms_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/policy"
)

// nextRoot gives the site's machine the root of the next generation.
func (s *site) nextRoot() hsm.Root {
	s.t.Helper()
	status, err := s.machine.Status(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	root := hsmtest.NewRoot(s.t)
	root.MachineID, root.Generation = status.MachineID, status.Generation+1
	if err := s.machine.OpenNext(s.t.Context(), root); err != nil {
		s.t.Fatal(err)
	}
	return root
}

func (s *site) rotateRoot(service *kms.Service) hsm.Root {
	s.t.Helper()
	root := s.nextRoot()
	var last, of int
	err := service.RotateRoot(s.t.Context(), root.Manifest, s.machine.Promote, func(done, total int) { last, of = done, total })
	if err != nil {
		s.t.Fatal(err)
	}
	if last == 0 || last != of {
		s.t.Errorf("progress ended at %d of %d", last, of)
	}
	return root
}

// anyone is an app that may do everything.
func anyone(t *testing.T) *auth.Caller {
	t.Helper()
	g, err := policy.ParseGrants("keys=*;ops=encrypt,decrypt,reencrypt")
	if err != nil {
		t.Fatal(err)
	}
	return &auth.Caller{App: &auth.App{Grants: g}}
}

func seal(ctx context.Context, service *kms.Service, app *auth.Caller, key string) ([]byte, error) {
	calls := []kms.Call{{Kind: hsm.Encrypt, Key: key, Input: []byte("text")}}
	err := service.Do(ctx, app, calls)
	return calls[0].Output, errors.Join(err, calls[0].Err)
}

func open(ctx context.Context, service *kms.Service, app *auth.Caller, sealed []byte) error {
	calls := []kms.Call{{Kind: hsm.Decrypt, Input: sealed}}
	err := errors.Join(service.Do(ctx, app, calls), calls[0].Err)
	if err == nil && string(calls[0].Output) != "text" {
		err = fmt.Errorf("opened as %q", calls[0].Output)
	}
	return err
}

// The root is rotated three times while keys are used and made, and apps changed: no
// call fails, no change is lost, and the store opens under the new root only.
func TestRotateRootUnderLoad(t *testing.T) {
	s := newSite(t)
	service, ctx := s.service(), t.Context()
	app := anyone(t)
	for i := range uint32(40) {
		s.create(service, i+1, fmt.Sprintf("key-%d", i+1))
	}
	before, err := seal(ctx, service, app, "7")
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var calls, changes atomic.Int64
	worker := func(count *atomic.Int64, f func(i int) error) {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(i); err != nil {
					t.Error(err)
					return
				}
				count.Add(1)
			}
		})
	}
	worker(&calls, func(i int) error {
		sealed, err := seal(ctx, service, app, fmt.Sprint(i%40+1))
		if err == nil {
			err = open(ctx, service, app, sealed)
		}
		return errors.Join(err, open(ctx, service, app, before))
	})
	worker(&changes, func(int) error {
		_, err := service.CreateKey(ctx, "test", kms.NewKey{Algorithm: 1})
		return err
	})
	worker(&changes, func(i int) error {
		if _, err := service.RotateKey(ctx, "test", uint32(i%40+1)); err != nil {
			return err
		}
		apps, err := service.Apps()
		if err != nil {
			return err
		}
		_, err = apps.Create(ctx, fmt.Sprintf("app-%d", i), nil, nil, 0)
		return err
	})
	var last hsm.Root
	for range 3 {
		last = s.rotateRoot(service)
	}
	close(stop)
	wg.Wait()
	t.Logf("%d calls and %d changes during three rotations", calls.Load(), changes.Load())
	keys, _ := service.ListKeys()
	apps, _ := service.Apps()
	if len(keys) < 40 || calls.Load() == 0 || changes.Load() == 0 {
		t.Errorf("%d keys, %d calls, %d changes", len(keys), calls.Load(), changes.Load())
	}

	// What the store holds is what the service says, all of it under the new root.
	again := s.service()
	reread, _ := again.ListKeys()
	appsAgain, _ := again.Apps()
	if len(reread) != len(keys) || appsAgain.Len() != apps.Len() {
		t.Errorf("%d keys and %d apps of %d and %d are in the store", len(reread), appsAgain.Len(), len(keys), apps.Len())
	}
	for i, k := range reread {
		if len(k.Versions) != len(keys[i].Versions) {
			t.Errorf("key %d has %d versions of %d", k.Index, len(k.Versions), len(keys[i].Versions))
		}
		for _, v := range k.Versions {
			if v.Wrapped.Generation() != last.Generation {
				t.Fatalf("key %d version %d is of generation %d", k.Index, v.Version, v.Wrapped.Generation())
			}
		}
	}
	if err := open(ctx, again, app, before); err != nil {
		t.Error(err)
	}
	entries, _, err := s.store.List(ctx, "", "", 1000)
	for _, e := range entries {
		if e.Name != "root" && !strings.HasPrefix(e.Name, fmt.Sprintf("g%d/", last.Generation)) {
			t.Errorf("%s is left of an old root (%v)", e.Name, err)
		}
	}
}

// A rotation that fails before its switch leaves everything as it was, and the next
// one clears up after it.
func TestRotateRootFails(t *testing.T) {
	s := newSite(t)
	service, ctx := s.service(), t.Context()
	s.create(service, 7, "chat")
	c := s.app(service, "im")
	root := s.nextRoot()
	s.rewrite("keys/0000000007", func(v []byte) []byte { v[len(v)-1] ^= 1; return v })
	err := service.RotateRoot(ctx, root.Manifest, s.machine.Promote, func(int, int) {})
	// Either the rotation comes upon it or the service has noticed before.
	if !errors.Is(err, fault.RecordDamaged) && !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "keys/0000000007") {
		t.Errorf("rotating an altered record: %v", err)
	}
	s.rewrite("keys/0000000007", func(v []byte) []byte { v[len(v)-1] ^= 1; return v })
	service = s.service()
	s.rotateRoot(service)
	if apps, err := s.service().Apps(); err != nil || apps.Len() != 1 || c.AppKey == "" {
		t.Errorf("%v", err)
	}
}

// Cards that were replaced do not open the records, even if the machine's own record was
// put back.
func TestSplit(t *testing.T) {
	s := newSite(t)
	service, ctx := s.service(), t.Context()
	s.create(service, 7, "chat")
	old, err := s.machine.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	newer := hsm.NewID()
	if err := service.Resplit(ctx, newer); err != nil {
		t.Fatal(err)
	}
	// The machine died before it changed over: its old cards still count.
	s.service()
	if err := service.Resplit(ctx, newer); err != nil {
		t.Fatal(err)
	}
	if err := service.Resplit(ctx, newer); err != nil { // the ceremony has committed
		t.Fatal(err)
	}
	err = kms.New(kms.Config{Machine: s.machine, Store: s.store}).Load(ctx)
	if !errors.Is(err, fault.CardSuperseded) || !strings.Contains(err.Error(), old.SplitID.String()) {
		t.Errorf("%v", err)
	}
}

// A store and a machine of different roots are told apart.
func TestOtherRoot(t *testing.T) {
	s := newSite(t)
	s.create(s.service(), 7, "chat")
	other := &site{t, hsmtest.Open(t), s.store}
	if err := kms.New(kms.Config{Machine: other.machine, Store: s.store}).Load(t.Context()); !errors.Is(err, fault.RootGeneration) {
		t.Errorf("%v", err)
	}
}
