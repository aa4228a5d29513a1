package record_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/kms/record"
)

func newKeeper(t testing.TB) (*record.Keeper, keystore.Store) {
	t.Helper()
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	k := &record.Keeper{Machine: hsmtest.Open(t), Store: store}
	if err := k.Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	return k, store
}

func set(t testing.TB, k *record.Keeper, name, content string) {
	t.Helper()
	r, err := k.Get(t.Context(), name)
	if errors.Is(err, keystore.ErrNotFound) {
		r, err = record.Record{Name: name}, nil
	}
	if err == nil {
		_, err = k.Apply(t.Context(), record.Replace(r, []byte(content)))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestPutBack puts each single entry that a change has rewritten back to what it was, takes
// it away, and puts one there that was deleted: verifying names it, whatever its level in
// the index is.
func TestPutBack(t *testing.T) {
	k, store := newKeeper(t)
	ctx := t.Context()
	for i := range 120 {
		set(t, k, fmt.Sprintf("thing/%d", i), "x")
	}
	before, _, err := store.List(ctx, "g1/", "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	set(t, k, "thing/7", "y")
	gone, err := k.Get(ctx, "thing/8")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Apply(ctx, record.Delete(gone)); err != nil {
		t.Fatal(err)
	}
	if err := k.Verify(ctx); err != nil {
		t.Fatal(err)
	}
	put := func(name string, value []byte) {
		t.Helper()
		if _, err := store.Txn(ctx, nil, []keystore.Write{{Name: name, Value: value, Delete: value == nil}}); err != nil {
			t.Fatal(err)
		}
	}
	levels := map[string]int{}
	for _, old := range before {
		now, err := store.Get(ctx, old.Name)
		if err == nil && now.Revision == old.Revision {
			continue // the changes did not touch it
		}
		level := "record"
		if rest, ok := strings.CutPrefix(old.Name, "g1/revisions/"); ok {
			level = map[int]string{2: "node", 5: "list", 7: "summary"}[len(rest)]
		}
		levels[level]++
		for _, value := range [][]byte{old.Value, nil} {
			put(old.Name, value)
			found := k.Verify(ctx)
			// Of a summary the nodes are named that it does not know yet.
			if value != nil || now.Value != nil {
				if !errors.Is(found, fault.RecordDamaged) || level != "summary" && !strings.Contains(found.Error(), strings.TrimPrefix(old.Name, "g1/")+":") {
					t.Errorf("%s, %d bytes put there: %v", old.Name, len(value), found)
				}
			}
			put(old.Name, now.Value)
			if err := k.Verify(ctx); err != nil {
				t.Fatalf("%s, as it was again: %v", old.Name, err)
			}
		}
	}
	if levels["record"] != 2 || levels["list"] == 0 || levels["node"] == 0 || levels["summary"] != 1 {
		t.Errorf("%v", levels)
	}
	for _, name := range []string{"g1/revisions/zz", "g1/revisions/00/0", "g1/stranger"} {
		put(name, before[0].Value)
		if err := k.Verify(ctx); !errors.Is(err, fault.RecordDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		put(name, nil)
	}
}

// TestVerifyWhileChanging verifies while others change records all the time: nobody is
// accused, and it comes to an end.
func TestVerifyWhileChanging(t *testing.T) {
	k, _ := newKeeper(t)
	for i := range 200 {
		set(t, k, fmt.Sprintf("thing/%d", i), "x")
	}
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					set(t, k, fmt.Sprintf("thing/%d", (i*2+w)%400), "y")
				}
			}
		})
	}
	for range 20 {
		if err := k.Verify(t.Context()); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	writers.Wait()
}

// BenchmarkApply is one change beside others: what it costs must not depend on their number.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{100, 20_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k, _ := newKeeper(b)
			for i := 0; i < n; i += 25 {
				var changes []record.Change
				for j := range 25 {
					changes = append(changes, record.Create(fmt.Sprintf("thing/%d", i+j), []byte("x")))
				}
				if _, err := k.Apply(b.Context(), changes...); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				set(b, k, "thing/7", "y")
			}
		})
	}
}
