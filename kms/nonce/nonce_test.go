package nonce_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/keystore/etcd"
	"github.com/trikey/trikey/keystore/etcd/etcdtest"
	"github.com/trikey/trikey/kms/nonce"
)

// clock is a clock that a test sets.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(c.at.Load(), 0) }
func (c *clock) forward(d time.Duration) { c.at.Add(int64(d / time.Second)) }

func newStore(t testing.TB) keystore.Store {
	t.Helper()
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// newEtcd is a store of many nodes.
func newEtcd(t testing.TB) keystore.Store {
	t.Helper()
	files := etcdtest.NewFiles(t)
	c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Installed(t), TLS: files})
	s, err := etcd.Open(t.Context(), etcd.Config{Endpoints: c.Endpoints(), Prefix: "/t/", CA: files.CA, Cert: files.Client, Key: files.ClientKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// stores are the backends.
var stores = map[string]func(testing.TB) keystore.Store{"bolt": newStore, "etcd": newEtcd}

// node is a ledger that runs, until stop or the end of the test.
func node(t testing.TB, s keystore.Store, holder string, now func() time.Time) (l *nonce.Ledger, stop func()) {
	t.Helper()
	l = nonce.New(s, holder, now)
	from, err := l.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { l.Run(ctx, from, time.Millisecond) })
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	return l, stop
}

func want(t *testing.T, err error, code fault.Code) {
	t.Helper()
	if code == "" && err != nil || code != "" && !errors.Is(err, code) {
		t.Errorf("got %v, want %q", err, code)
	}
}

// TestOnce: of all claims of a nonce, on two nodes and at the same time, one succeeds.
func TestOnce(t *testing.T) {
	for name, open := range stores {
		t.Run(name, func(t *testing.T) { testOnce(t, open(t)) })
	}
}

func testOnce(t *testing.T, s keystore.Store) {
	a, _ := node(t, s, "a", time.Now)
	b, _ := node(t, s, "b", time.Now)
	const nonces, tries = 200, 3
	won := make([]atomic.Int32, nonces)
	var all sync.WaitGroup
	for i := range nonces {
		for range tries {
			for _, l := range []*nonce.Ledger{a, b} {
				all.Go(func() {
					switch err := l.Claim(t.Context(), "ak", fmt.Sprint(i)); {
					case err == nil:
						won[i].Add(1)
					case !errors.Is(err, fault.Replay):
						t.Error(err)
					}
				})
			}
		}
	}
	all.Wait()
	for i := range won {
		if n := won[i].Load(); n != 1 {
			t.Errorf("nonce %d was used %d times", i, n)
		}
	}
}

// TestApart: the same nonce of another app, and one that is put together of the same
// characters, is another.
func TestApart(t *testing.T) {
	l, _ := node(t, newStore(t), "a", time.Now)
	for _, c := range [][2]string{{"ak", "nonce"}, {"akn", "once"}, {"ak2", "nonce"}} {
		want(t, l.Claim(t.Context(), c[0], c[1]), "")
		want(t, l.Claim(t.Context(), c[0], c[1]), fault.Replay)
	}
}

// TestRestart: a node that starts anew knows what it and others had seen.
func TestRestart(t *testing.T) {
	s := newStore(t)
	l, stop := node(t, s, "a", time.Now)
	for i := range 1500 { // more than an entry has
		want(t, l.Claim(t.Context(), "ak", fmt.Sprint(i)), "")
	}
	stop()
	want(t, l.Claim(t.Context(), "ak", "later"), fault.Unavailable)
	again, _ := node(t, s, "a2", time.Now)
	for i := range 1500 {
		want(t, again.Claim(t.Context(), "ak", fmt.Sprint(i)), fault.Replay)
	}
	want(t, again.Claim(t.Context(), "ak", "later"), "")
}

// TestForgotten: a nonce is refused for ten minutes and more, and then forgotten, in
// memory and in the store.
func TestForgotten(t *testing.T) {
	s := newStore(t)
	c := &clock{}
	c.at.Store(1_700_000_000)
	l, stop := node(t, s, "a", c.now)
	want(t, l.Claim(t.Context(), "ak", "nonce"), "")
	for range 20 {
		c.forward(30 * time.Second)
		want(t, l.Claim(t.Context(), "ak", "nonce"), fault.Replay)
	}
	c.forward(3 * time.Minute)
	want(t, l.Claim(t.Context(), "ak", "nonce"), "")
	stop()

	// Another node takes away what one left behind that is no more.
	c.forward(time.Hour)
	next, _ := node(t, s, "b", c.now)
	want(t, next.Claim(t.Context(), "ak", "other"), "")
	entries, _, err := s.List(t.Context(), nonce.Prefix, "", 10)
	if err != nil || len(entries) != 1 {
		t.Errorf("%d entries are left, %v", len(entries), err)
	}
}

// TestAway: without the store nobody knows, and nobody is let in.
func TestAway(t *testing.T) {
	s := newStore(t)
	l, _ := node(t, s, "a", time.Now)
	want(t, l.Claim(t.Context(), "ak", "1"), "")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want(t, l.Claim(t.Context(), "ak", "1"), fault.Replay)
	want(t, l.Claim(t.Context(), "ak", "2"), fault.Unavailable)
}

// TestFull: when there is no room to remember, nothing is taken that would be forgotten.
func TestFull(t *testing.T) {
	l, _ := node(t, newStore(t), "a", time.Now)
	l.Max = 3
	for i := range 3 {
		want(t, l.Claim(t.Context(), "ak", fmt.Sprint(i)), "")
	}
	want(t, l.Claim(t.Context(), "ak", "3"), fault.Unavailable)
	want(t, l.Claim(t.Context(), "ak", "0"), fault.Replay)
}

// BenchmarkClaim is what a signed request pays for its nonce: claims at the same time
// share a transaction.
func BenchmarkClaim(b *testing.B) {
	for name, open := range stores {
		for _, callers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/c=%d", name, callers), func(b *testing.B) { benchmarkClaim(b, open(b), callers) })
		}
	}
}

func benchmarkClaim(b *testing.B, s keystore.Store, callers int) {
	l, _ := node(b, s, "a", time.Now)
	var next atomic.Int64
	b.SetParallelism(callers)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Claim(b.Context(), "ak", fmt.Sprint(next.Add(1))); err != nil {
				b.Error(err)
			}
		}
	})
}
