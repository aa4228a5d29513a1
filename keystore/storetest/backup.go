package storetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/trikey/trikey/keystore"
)

// testBackup: a snapshot is of the moment that it names, while writers change entries in
// pairs, and take others out and put them back.
func testBackup(t *testing.T, s *store) {
	const pairs = 800 // more than a backend reads at a time
	pair := func(i int, value string) []keystore.Write {
		return []keystore.Write{{Name: fmt.Sprintf("a%03d", i), Value: []byte(value)}, {Name: fmt.Sprintf("z%03d", i), Value: []byte(value)}}
	}
	var all []keystore.Write
	for i := range pairs {
		all = append(all, pair(i, "0")...)
	}
	for batch := range keystore.Batches(all) {
		if _, err := s.Txn(s.ctx, nil, batch); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(s.ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for w := range 2 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				writes := append(pair((n*7+w)%pairs, fmt.Sprint(w, "/", n)), keystore.Write{Name: fmt.Sprintf("n%d", w), Value: []byte("x"), Delete: n%2 == 1})
				if _, err := s.Txn(s.ctx, nil, writes); err != nil { // not ctx: what is cut short may be done later
					t.Error(err)
					return
				}
			}
		})
	}
	for range 5 {
		made := map[string]string{}
		calls := 0
		before := s.put("before", "x")
		revision, err := s.Snapshot(s.ctx, func(writes []keystore.Write) error {
			if calls++; calls == 1 {
				s.put("meanwhile", fmt.Sprint(calls)) // a slow reader
			}
			for _, w := range writes {
				if delete(made, w.Name); !w.Delete {
					made[w.Name] = string(w.Value)
				}
			}
			return nil
		})
		if err != nil || revision < before {
			t.Fatalf("revision %d, after %d: %v", revision, before, err)
		}
		for i := range pairs {
			if a, z := made[fmt.Sprintf("a%03d", i)], made[fmt.Sprintf("z%03d", i)]; a == "" || a != z {
				t.Fatalf("pair %d is %q and %q", i, a, z)
			}
		}
	}
	stop()
	wg.Wait()
	// At rest it is what a list is.
	list, at, err := s.List(s.ctx, "", "", 10*pairs)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	revision, err := s.Snapshot(s.ctx, func(writes []keystore.Write) error {
		for _, w := range writes {
			names = append(names, w.Name)
		}
		return nil
	})
	if err != nil || revision < at || !slices.IsSorted(names) || len(names) != len(list) {
		t.Errorf("%d entries at %d; the list has %d at %d: %v", len(names), revision, len(list), at, err)
	}
	if _, err := s.Snapshot(s.ctx, func([]keystore.Write) error { return context.Canceled }); err == nil {
		t.Error("an error of f is lost")
	}
}
