package lease_test

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/keystore/etcd"
	"github.com/trikey/trikey/keystore/etcd/etcdtest"
	"github.com/trikey/trikey/kms/lease"
)

const name = "lease/test"

type election struct {
	t     *testing.T
	store keystore.Store
	now   time.Time
}

// onEach runs a test on each kind of store.
func onEach(t *testing.T, test func(t *testing.T, e *election)) {
	t.Helper()
	for kind, open := range map[string]func(*testing.T) (keystore.Store, error){
		"bolt": func(t *testing.T) (keystore.Store, error) {
			return bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
		},
		"etcd": func(t *testing.T) (keystore.Store, error) {
			c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Installed(t)})
			return etcd.Open(t.Context(), etcd.Config{Endpoints: c.Endpoints()})
		},
	} {
		t.Run(kind, func(t *testing.T) {
			store, err := open(t)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = store.Close() })
			test(t, &election{t, store, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)})
		})
	}
}

func (e *election) node(holder string) *lease.Lease {
	return &lease.Lease{Store: e.store, Name: name, Holder: holder, TTL: time.Minute, Now: func() time.Time { return e.now }}
}

func (e *election) want(l *lease.Lease, want bool) {
	e.t.Helper()
	if got, err := l.Hold(e.t.Context()); err != nil || got != want {
		e.t.Errorf("%s at %s: %v %v", l.Holder, e.now, got, err)
	}
}

func TestLease(t *testing.T) { onEach(t, testLease) }

func testLease(t *testing.T, e *election) {
	a, b := e.node("a"), e.node("b")
	e.want(a, true)
	e.want(b, false)
	e.now = e.now.Add(50 * time.Second)
	e.want(a, true) // renewed
	e.now = e.now.Add(50 * time.Second)
	e.want(b, false)
	e.now = e.now.Add(10 * time.Second) // a was silent
	e.want(b, true)
	e.want(a, false)
	if err := a.Release(t.Context()); err != nil { // not its own
		t.Error(err)
	}
	e.want(a, false)
	if err := b.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.Release(t.Context()); err != nil {
		t.Error(err)
	}
	e.want(a, true)
}

// An entry that no node wrote keeps nobody from being elected.
func TestOddEntries(t *testing.T) { onEach(t, testOddEntries) }

func testOddEntries(t *testing.T, e *election) {
	for _, value := range []string{"", "x", "{}", `{"holder":"z","until":"2999-01-01T00:00:00Z"}`} {
		if _, err := e.store.Txn(t.Context(), nil, []keystore.Write{{Name: name, Value: []byte(value)}}); err != nil {
			t.Fatal(err)
		}
		e.want(e.node("a"), true)
	}
}

// Of many nodes that stand at once, one is elected, time and again.
func TestOneHolder(t *testing.T) { onEach(t, testOneHolder) }

func testOneHolder(t *testing.T, e *election) {
	for range 20 {
		var wg sync.WaitGroup
		var mu sync.Mutex // guards held
		held := 0
		for i := range 8 {
			wg.Go(func() {
				ok, err := e.node(string(rune('a' + i))).Hold(t.Context())
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				if ok {
					held++
				}
			})
		}
		wg.Wait()
		if held != 1 {
			t.Fatalf("%d nodes hold the lease", held)
		}
		e.now = e.now.Add(time.Minute)
	}
}
