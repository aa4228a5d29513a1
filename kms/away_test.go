package kms_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/etcd"
	"github.com/trikey/trikey/keystore/etcd/etcdtest"
	"github.com/trikey/trikey/kms"
)

// newEtcdSite is a site whose store is an etcd of one member.
func newEtcdSite(t *testing.T) (*site, *etcdtest.Member) {
	t.Helper()
	c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Installed(t)})
	store, err := etcd.Open(t.Context(), etcd.Config{Endpoints: c.Endpoints(), Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return &site{t, hsmtest.Open(t), store}, c[0]
}

// While the store is away a service goes on with what it knows, refuses changes, and says
// so; one that had not begun begins when the store is back; and nobody misses a change.
func TestStoreAway(t *testing.T) {
	s, member := newEtcdSite(t)
	a := s.service()
	s.create(a, 7, "chat")
	credentials := s.app(a, "im")
	if err := a.Degraded(); err != nil {
		t.Fatal(err)
	}
	member.Kill()
	_, err := a.CreateKey(t.Context(), "test", kms.NewKey{Index: 8, Algorithm: alg.AES256GCM})
	if !errors.Is(err, fault.Unavailable) || !errors.Is(err, keystore.ErrUnavailable) {
		t.Errorf("a key was made without a store: %v", err)
	}
	eventually(t, "the service says that its store is away", func() bool {
		return a.Degraded() != nil && strings.Contains(a.Degraded().Error(), "memory")
	})
	if err := a.Ready(t.Context()); err != nil {
		t.Errorf("calls are answered, and yet: %v", err)
	}
	if _, err := a.FindKey("chat"); err != nil {
		t.Error(err)
	}
	checkAway(t, a)
	apps, err := a.Apps()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := apps.Authenticate(credentials.AppKey, credentials.AppSecret, netip.MustParseAddr("127.0.0.1")); err != nil {
		t.Error(err)
	}
	b := kms.New(kms.Config{Machine: s.machine, Store: s.store})
	t.Cleanup(func() { _ = b.Close() })
	if err := b.Load(t.Context()); !errors.Is(err, keystore.ErrUnavailable) {
		t.Fatalf("loaded from nothing: %v", err)
	}
	if err := b.Ready(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("ready without a record: %v", err)
	}
	// One that is unloaded while it waits stays so.
	sealed := kms.New(kms.Config{Machine: s.machine, Store: s.store})
	t.Cleanup(func() { _ = sealed.Close() })
	if err := sealed.Load(t.Context()); !errors.Is(err, keystore.ErrUnavailable) {
		t.Fatal(err)
	}
	sealed.Unload()
	member.Start()
	eventually(t, "the service that waited serves", func() bool { k, err := b.FindKey("chat"); return err == nil && k.Index == 7 })
	eventually(t, "all is well again", func() bool { return a.Degraded() == nil && b.Degraded() == nil })
	if _, err := sealed.FindKey("chat"); !errors.Is(err, fault.Sealed) {
		t.Errorf("an unloaded service serves: %v", err)
	}
	if _, err := b.RotateKey(t.Context(), "test", 7); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other node follows again", func() bool { k, err := a.FindKey("chat"); return err == nil && k.Newest().Version == 2 })
}

// Half a copy of a store, which has records but no root entry, is no store.
func TestHalfCopy(t *testing.T) {
	s := newSite(t)
	if _, err := s.store.Txn(t.Context(), nil, []keystore.Write{{Name: "g1/keys/0000000007", Value: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	service := kms.New(kms.Config{Machine: s.machine, Store: s.store})
	t.Cleanup(func() { _ = service.Close() })
	if err := service.Load(context.Background()); !errors.Is(err, fault.RecordDamaged) {
		t.Errorf("%v", err)
	}
	if _, err := s.store.Get(t.Context(), "root"); !errors.Is(err, keystore.ErrNotFound) {
		t.Errorf("it was made a store: %v", err)
	}
}
