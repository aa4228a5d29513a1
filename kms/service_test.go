package kms_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/policy"
)

// site is a machine and a store that services share, as the nodes of a cluster will.
type site struct {
	t       *testing.T
	machine hsm.Engine
	store   keystore.Store
}

func newSite(t *testing.T) *site {
	t.Helper()
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return &site{t, hsmtest.Open(t), store}
}

func (s *site) service() *kms.Service {
	s.t.Helper()
	service := kms.New(kms.Config{Machine: s.machine, Store: s.store})
	s.t.Cleanup(func() { _ = service.Close() })
	if err := service.Load(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return service
}

func (s *site) create(service *kms.Service, index uint32, name string) *kms.Key {
	s.t.Helper()
	k, err := service.CreateKey(s.t.Context(), "test", kms.NewKey{Index: index, Name: name, Algorithm: alg.AES256GCM})
	if err != nil {
		s.t.Fatal(err)
	}
	return k
}

func (s *site) app(service *kms.Service, name string) auth.Credentials {
	s.t.Helper()
	apps, err := service.Apps()
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := apps.Create(s.t.Context(), name, policy.Whitelist{netip.MustParsePrefix("127.0.0.1/32")}, nil, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// eventually waits for what the watch will bring.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !f() {
		if ctx.Err() != nil {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// Of many callers who want the same index or name, one gets it.
func TestCreateOnce(t *testing.T) {
	s := newSite(t)
	nodes := []*kms.Service{s.service(), s.service()}
	var wg sync.WaitGroup
	var mu sync.Mutex // guards made
	made := 0
	for i := range 10 {
		wg.Go(func() {
			_, err := nodes[i%2].CreateKey(t.Context(), "test", kms.NewKey{Index: 7, Name: "chat", Algorithm: alg.AES256GCM})
			if err != nil && !errors.Is(err, fault.Conflict) {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("the key was made %d times", made)
	}
	// Without an index every caller gets one of their own.
	for i := range 10 {
		wg.Go(func() {
			if _, err := nodes[i%2].CreateKey(t.Context(), "test", kms.NewKey{Algorithm: alg.AES256GCM}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	eventually(t, "both nodes have all keys", func() bool {
		a, _ := nodes[0].ListKeys()
		b, _ := nodes[1].ListKeys()
		return len(a) == 11 && len(b) == 11
	})
}

// Rotations by two nodes at once lose none.
func TestRotateTogether(t *testing.T) {
	s := newSite(t)
	nodes := []*kms.Service{s.service(), s.service()}
	s.create(nodes[0], 7, "chat")
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if _, err := nodes[i%2].RotateKey(t.Context(), "test", 7); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, n := range nodes {
		eventually(t, "eleven versions", func() bool {
			k, err := n.FindKey("chat")
			return err == nil && len(k.Versions) == 11 && k.Newest().Version == 11
		})
	}
	if _, err := nodes[0].RotateKey(t.Context(), "test", 8); !errors.Is(err, fault.KeyNotFound) {
		t.Errorf("rotate of no key: %v", err)
	}
}

func TestBadNames(t *testing.T) {
	s := newSite(t)
	service := s.service()
	for _, name := range []string{"7", "7a", "-a", "a b", "a/b", "ключ", "a\n", strings.Repeat("a", 65), "a;b"} {
		if _, err := service.CreateKey(t.Context(), "test", kms.NewKey{Index: 1, Name: name, Algorithm: alg.AES256GCM}); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A change on one node reaches the other: a new app, a rotated secret.
func TestAppsFollow(t *testing.T) {
	s := newSite(t)
	a, b := s.service(), s.service()
	c := s.app(a, "im")
	home := netip.MustParseAddr("127.0.0.1")
	authenticate := func(secret string) error {
		apps, err := b.Apps()
		if err != nil {
			return err
		}
		_, err = apps.Authenticate(c.AppKey, secret, home)
		return err
	}
	eventually(t, "the app is known", func() bool { return authenticate(c.AppSecret) == nil })
	apps, err := a.Apps()
	if err != nil {
		t.Fatal(err)
	}
	var newest auth.Credentials
	for range 2 {
		if newest, err = apps.RotateSecret(t.Context(), "im", 0); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the newest secret is valid", func() bool { return authenticate(newest.AppSecret) == nil })
	eventually(t, "the first is not", func() bool { return errors.Is(authenticate(c.AppSecret), fault.Unauthorized) })
}

// Whatever is done to a record in the store, the service refuses it by its name, at load
// and while it runs.
func TestAlteredRecords(t *testing.T) {
	for name, alter := range map[string]func(t *testing.T, s *site) string{
		"a bit of an app": func(t *testing.T, s *site) string {
			return s.rewrite("apps/app/im", func(v []byte) []byte { v[len(v)/2] ^= 1; return v })
		},
		"a bit of a key": func(t *testing.T, s *site) string {
			return s.rewrite("keys/0000000007", func(v []byte) []byte { v[len(v)-1] ^= 1; return v })
		},
		"one key for another": func(t *testing.T, s *site) string {
			e, _ := s.store.Get(t.Context(), "g1/keys/0000000008")
			return s.rewrite("keys/0000000007", func([]byte) []byte { return e.Value })
		},
		"another revision's number": func(t *testing.T, s *site) string {
			return s.rewrite("keys/0000000007", func(v []byte) []byte {
				binary.BigEndian.PutUint64(v, binary.BigEndian.Uint64(v)+1)
				return v
			})
		},
		"a copy under a new name": func(t *testing.T, s *site) string {
			e, _ := s.store.Get(t.Context(), "g1/apps/app/im")
			return s.rewrite("apps/app/copy", func([]byte) []byte { return e.Value })
		},
		"cut short": func(t *testing.T, s *site) string {
			return s.rewrite("keys/0000000007", func([]byte) []byte { return []byte("x") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			running := s.service()
			s.create(running, 7, "chat")
			s.create(running, 8, "other")
			s.app(running, "im")
			entry := alter(t, s)
			err := kms.New(kms.Config{Machine: s.machine, Store: s.store}).Load(t.Context())
			if !errors.Is(err, fault.RecordDamaged) || !strings.Contains(err.Error(), entry) {
				t.Errorf("at load: %v; want the name %s", err, entry)
			}
			eventually(t, "the running service refuses it", func() bool {
				err := running.Ready(t.Context())
				return errors.Is(err, fault.Unavailable) && strings.Contains(err.Error(), entry)
			})
		})
	}
}

// rewrite changes an entry behind the service's back, and returns its name.
func (s *site) rewrite(name string, f func([]byte) []byte) string {
	s.t.Helper()
	entry := "g1/" + name // of the first generation of the root
	e, err := s.store.Get(s.t.Context(), entry)
	if err != nil && !errors.Is(err, keystore.ErrNotFound) {
		s.t.Fatal(err)
	}
	if _, err := s.store.Txn(s.t.Context(), nil, []keystore.Write{{Name: entry, Value: f(e.Value)}}); err != nil {
		s.t.Fatal(err)
	}
	return name
}

func TestSealedServesNothing(t *testing.T) {
	s := newSite(t)
	service := s.service()
	s.create(service, 7, "chat")
	service.Unload()
	_, errApps := service.Apps()
	_, errKey := service.FindKey("7")
	_, errList := service.ListKeys()
	for _, err := range []error{errApps, errKey, errList, service.Ready(t.Context()), service.Do(t.Context(), &auth.Caller{App: &auth.App{}}, nil)} {
		if !errors.Is(err, fault.Sealed) {
			t.Errorf("%v", err)
		}
	}
}
