package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/trikey/trikey/keystore"
)

// testSnapshot: a list is of one moment, however long it is, and pages of it neither skip nor
// repeat what does not change, while writers change the rest.
func testSnapshot(t *testing.T, s *store) {
	const pairs = 700 // more than a backend reads at a time
	pair := func(i int, value string) []keystore.Write {
		return []keystore.Write{
			{Name: fmt.Sprintf("p/a%03d", i), Value: []byte(value)},
			{Name: fmt.Sprintf("p/m%03d", i), Value: []byte("same")},
			{Name: fmt.Sprintf("p/z%03d", i), Value: []byte(value)},
		}
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
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for w := range 2 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				// Both ends of the range together, and entries that come and go.
				writes := append(pair((n*7+w)%pairs, fmt.Sprint(w, "/", n)), keystore.Write{Name: fmt.Sprintf("p/n%d/%d", w, n%50), Delete: n%2 == 1})
				writes = slices.Delete(writes, 1, 2) // "same" stays
				if _, err := s.Txn(ctx, nil, writes); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	defer stop()
	for range 10 {
		list, revision, err := s.List(s.ctx, "p/", "", 10*pairs)
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]string{}
		for _, e := range list {
			if values[e.Name] = string(e.Value); e.Revision > revision {
				t.Fatalf("a list of revision %d has %s of %d", revision, e.Name, e.Revision)
			}
		}
		for i := range pairs {
			if a, z := values[fmt.Sprintf("p/a%03d", i)], values[fmt.Sprintf("p/z%03d", i)]; a != z || a == "" {
				t.Fatalf("one list has %q and %q of one transaction", a, z)
			}
		}
		steady := 0
		for page, after := 0, ""; page == 0 || after != ""; page++ {
			list, _, err := s.List(s.ctx, "p/", after, 97)
			if err != nil {
				t.Fatal(err)
			}
			if after = ""; len(list) == 97 {
				after = list[96].Name
			}
			for _, e := range list {
				if string(e.Value) == "same" {
					steady++
				}
			}
		}
		if steady != pairs {
			t.Fatalf("pages have %d of %d entries that nobody changes", steady, pairs)
		}
	}
}

// testWatchOrder: a watch has the transactions of concurrent writers whole, in the order
// of their revisions, which are those that the writers were told.
func testWatchOrder(t *testing.T, s *store) {
	const writers, each = 4, 30
	var mu sync.Mutex // guards told
	told := map[int64]string{}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				value := []byte(fmt.Sprint(w, "-", i))
				writes := []keystore.Write{{Name: "o/1", Value: value}, {Name: fmt.Sprint("o/", w), Value: value}, {Name: "o/shared", Value: value}}
				if w == 1 {
					writes = writes[1:]
				}
				revision, err := s.Txn(s.ctx, nil, writes)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if before, taken := told[revision]; taken {
					t.Errorf("revision %d is of %s and of %s", revision, before, value)
				}
				told[revision] = string(value)
				mu.Unlock()
			}
		})
	}
	seen := map[int64]string{}
	var last int64
	enough := errors.New("enough")
	err := s.Watch(s.ctx, "o/", 0, func(events []keystore.Event) error {
		for _, e := range events {
			if e.Revision != events[0].Revision || string(e.Value) != string(events[0].Value) {
				t.Errorf("one call has events of two transactions: %s", render(events))
			}
		}
		if events[0].Revision <= last {
			t.Errorf("revision %d after %d", events[0].Revision, last)
		}
		if last = events[0].Revision; len(events) < 2 {
			t.Errorf("part of a transaction: %s", render(events))
		}
		if seen[last] = string(events[0].Value); len(seen) == writers*each {
			return enough
		}
		return nil
	})
	wg.Wait()
	if !errors.Is(err, enough) || !maps.Equal(seen, told) {
		t.Errorf("%v: the watch saw %d transactions, or others than the writers were told", err, len(seen))
	}
}

// testWatchList: a list, and a watch from its revision, miss nothing between them.
func testWatchList(t *testing.T, s *store) {
	const n = 60
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for i := range n {
			s.put(fmt.Sprintf("wl/%02d", i), "")
		}
	})
	for have := -1; have < n; {
		list, from, err := s.List(s.ctx, "wl/", "", 2*n)
		if err != nil {
			t.Fatal(err)
		}
		if have = len(list); have == n {
			return
		}
		next := errors.New("next")
		err = s.Watch(s.ctx, "wl/", from, func(events []keystore.Event) error {
			if want := fmt.Sprintf("wl/%02d", have); events[0].Name != want {
				t.Errorf("after a list of %d entries the first event is of %s", have, events[0].Name)
			}
			return next
		})
		if !errors.Is(err, next) {
			t.Fatal(err)
		}
	}
}

// testElection: of those who want an entry that says until when it is held, one gets it,
// and the next one when that time is over.
func testElection(t *testing.T, s *store) {
	const nodes, terms = 4, 10
	for term := range terms {
		var before keystore.Entry
		if term > 0 {
			e, err := s.Get(s.ctx, "election")
			if err != nil {
				t.Fatal(err)
			}
			before = e
		}
		winners := make(chan int, nodes)
		var wg sync.WaitGroup
		for node := range nodes {
			wg.Go(func() {
				_, err := s.Txn(s.ctx, []keystore.Compare{{Name: "election", Revision: before.Revision}},
					[]keystore.Write{{Name: "election", Value: fmt.Append(nil, node, " until ", term)}})
				switch {
				case err == nil:
					winners <- node
				case !errors.Is(err, keystore.ErrConflict):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(winners) != 1 {
			t.Fatalf("term %d has %d winners", term, len(winners))
		}
		if e, err := s.Get(s.ctx, "election"); err != nil || string(e.Value) != fmt.Sprint(<-winners, " until ", term) {
			t.Errorf("term %d: %q, %v", term, e.Value, err)
		}
	}
}

// testCancelled: a call whose context has ended says so, and writes nothing.
func testCancelled(t *testing.T, s *store) {
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	_, errGet := s.Get(ctx, "a")
	_, errTxn := s.Txn(ctx, nil, []keystore.Write{{Name: "a", Value: []byte("1")}})
	_, _, errList := s.List(ctx, "", "", 1)
	errWatch := s.Watch(ctx, "", 0, func([]keystore.Event) error { return nil })
	for _, err := range []error{errGet, errTxn, errList, errWatch} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
	s.wantNone("a")
}
