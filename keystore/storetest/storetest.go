// Package storetest is the contract of keystore.Store, as a test suite that every
// backend passes.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trikey/trikey/keystore"
)

// Run runs the suite. open returns an empty store, which the suite closes; each
// call returns another.
func Run(t *testing.T, open func(t *testing.T) keystore.Store) {
	for name, test := range map[string]func(*testing.T, *store){
		"GetPutDelete": testGetPutDelete, "CompareAndSwap": testCompareAndSwap, "Atomic": testAtomic, "Limits": testLimits,
		"Isolation": testIsolation, "List": testList, "Counter": testCounter, "WatchPast": testWatchPast, "WatchLive": testWatchLive,
		"WatchResume": testWatchResume, "WatchEnds": testWatchEnds, "Closed": testClosed, "Snapshot": testSnapshot, "WatchOrder": testWatchOrder, "WatchList": testWatchList,
		"Backup": testBackup, "Election": testElection, "Cancelled": testCancelled,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The bound of every test here; none of them waits that long.
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			t.Cleanup(cancel)
			s := open(t)
			t.Cleanup(func() { _ = s.Close() })
			test(t, &store{s, t, ctx})
		})
	}
}

// store is a store whose failures end the test.
type store struct {
	keystore.Store
	t   *testing.T
	ctx context.Context
}

func (s *store) put(name, value string) int64 {
	s.t.Helper()
	revision, err := s.Txn(s.ctx, nil, []keystore.Write{{Name: name, Value: []byte(value)}})
	if err != nil {
		s.t.Fatalf("put %s: %v", name, err)
	}
	return revision
}

func (s *store) remove(name string) int64 {
	s.t.Helper()
	revision, err := s.Txn(s.ctx, nil, []keystore.Write{{Name: name, Delete: true}})
	if err != nil {
		s.t.Fatalf("delete %s: %v", name, err)
	}
	return revision
}

func (s *store) want(name, value string, revision int64) {
	s.t.Helper()
	e, err := s.Get(s.ctx, name)
	if err != nil || string(e.Value) != value || e.Revision != revision || e.Name != name {
		s.t.Errorf("%s = %q at %d, %v; want %q at %d", e.Name, e.Value, e.Revision, err, value, revision)
	}
}

func (s *store) wantNone(name string) {
	s.t.Helper()
	if e, err := s.Get(s.ctx, name); !errors.Is(err, keystore.ErrNotFound) {
		s.t.Errorf("%s = %q, %v; want none", name, e.Value, err)
	}
}

func testGetPutDelete(_ *testing.T, s *store) {
	s.wantNone("a")
	first := s.put("a", "1")
	s.want("a", "1", first)
	second := s.put("a", "2")
	if second <= first {
		s.t.Errorf("revisions %d, then %d", first, second)
	}
	s.want("a", "2", second)
	s.put("empty", "")
	if e, err := s.Get(s.ctx, "empty"); err != nil || len(e.Value) != 0 {
		s.t.Errorf("the empty value is %q, %v", e.Value, err)
	}
	s.remove("a")
	s.wantNone("a")
	s.remove("a") // of nothing: allowed
	s.want("b", "3", s.put("b", "3"))
}

func testCompareAndSwap(t *testing.T, s *store) {
	swap := func(revision int64, value string) (int64, error) {
		return s.Txn(s.ctx, []keystore.Compare{{Name: "k", Revision: revision}}, []keystore.Write{{Name: "k", Value: []byte(value)}})
	}
	first, err := swap(0, "created")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := swap(0, "again"); !errors.Is(err, keystore.ErrConflict) {
		t.Errorf("created twice: %v", err)
	}
	second, err := swap(first, "changed")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := swap(first, "stale"); !errors.Is(err, keystore.ErrConflict) {
		t.Errorf("a stale swap: %v", err)
	}
	s.want("k", "changed", second)
	if revision, err := s.Txn(s.ctx, []keystore.Compare{{Name: "k", Revision: second}}, nil); err != nil || revision < second {
		t.Errorf("a comparison alone: %d, %v", revision, err)
	}
	s.remove("k")
	if _, err := swap(second, "gone"); !errors.Is(err, keystore.ErrConflict) {
		t.Errorf("a swap of what was deleted: %v", err)
	}
	if _, err := swap(0, "anew"); err != nil {
		t.Errorf("created anew: %v", err)
	}
}

func testAtomic(t *testing.T, s *store) {
	s.put("b", "old")
	writes := []keystore.Write{{Name: "a", Value: []byte("1")}, {Name: "b", Value: []byte("2")}, {Name: "c", Delete: true}}
	if _, err := s.Txn(s.ctx, []keystore.Compare{{Name: "b"}}, writes); !errors.Is(err, keystore.ErrConflict) {
		t.Fatalf("%v", err)
	}
	s.wantNone("a")
	revision, err := s.Txn(s.ctx, []keystore.Compare{{Name: "a"}, {Name: "c"}}, writes)
	if err != nil {
		t.Fatal(err)
	}
	s.want("a", "1", revision)
	s.want("b", "2", revision)
}

func testLimits(t *testing.T, s *store) {
	many := make([]keystore.Write, keystore.MaxTxn+1)
	for i := range many {
		many[i] = keystore.Write{Name: fmt.Sprint("n", i)}
	}
	large := []keystore.Write{{Name: "x", Value: make([]byte, keystore.MaxTxnBytes/2)}, {Name: "y", Value: make([]byte, keystore.MaxTxnBytes/2)}}
	for what, writes := range map[string][]keystore.Write{
		"no name": {{}}, "long name": {{Name: strings.Repeat("n", keystore.MaxName+1)}},
		"large value": {{Name: "v", Value: make([]byte, keystore.MaxValue+1)}}, "many writes": many,
		"twice": {{Name: "x"}, {Name: "x"}}, "large in all": large,
	} {
		if _, err := s.Txn(s.ctx, nil, writes); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	name := strings.Repeat("n", keystore.MaxName)
	value := strings.Repeat("v", keystore.MaxValue)
	s.want(name, value, s.put(name, value))
	testFull(t, s)
	if _, _, err := s.List(s.ctx, "", "", 0); err == nil {
		t.Error("a list of no entries was accepted")
	}
	s.put("name\x00with\xffany/bytes", "ok")
	if e, err := s.Get(s.ctx, "name\x00with\xffany/bytes"); err != nil || string(e.Value) != "ok" {
		t.Errorf("a name of any bytes: %q, %v", e.Value, err)
	}
}

// testFull: a transaction at all of its limits together.
func testFull(t *testing.T, s *store) {
	compares := make([]keystore.Compare, keystore.MaxTxn)
	writes := make([]keystore.Write, keystore.MaxTxn)
	for i := range writes {
		compares[i] = keystore.Compare{Name: fmt.Sprintf("full/%0*d", keystore.MaxName-5, i)}
		writes[i] = keystore.Write{Name: compares[i].Name, Value: make([]byte, keystore.MaxTxnBytes/keystore.MaxTxn-2*keystore.MaxName)}
	}
	if _, err := s.Txn(s.ctx, compares, writes); err != nil {
		t.Errorf("a transaction as large as is allowed: %v", err)
	}
	if list, _, err := s.List(s.ctx, "full/", "", 2*keystore.MaxTxn); err != nil || len(list) != keystore.MaxTxn {
		t.Errorf("%d entries, %v", len(list), err)
	}
}

func testIsolation(_ *testing.T, s *store) {
	value := []byte("value")
	revision, err := s.Txn(s.ctx, nil, []keystore.Write{{Name: "k", Value: value}})
	if err != nil {
		s.t.Fatal(err)
	}
	value[0] = 'X'
	s.want("k", "value", revision)
	e, _ := s.Get(s.ctx, "k")
	e.Value[0] = 'Y'
	s.want("k", "value", revision)
	list, _, _ := s.List(s.ctx, "k", "", 1)
	list[0].Value[0] = 'Z'
	s.want("k", "value", revision)
}

func testList(t *testing.T, s *store) {
	all := []string{"a", "ab", "ab/1", "ab/2", "ab/3", "ab0", "b", "\xff", "\xff\xff"}
	for _, i := range []int{5, 0, 8, 3, 2, 7, 1, 6, 4} {
		s.put(all[i], "v"+all[i])
	}
	list := func(prefix, after string, limit int) (names []string) {
		t.Helper()
		entries, revision, err := s.List(s.ctx, prefix, after, limit)
		if err != nil || revision < int64(len(all)) {
			t.Fatalf("list %q: revision %d, %v", prefix, revision, err)
		}
		for _, e := range entries {
			if string(e.Value) != "v"+e.Name || e.Revision == 0 {
				t.Errorf("%q = %q at %d", e.Name, e.Value, e.Revision)
			}
			names = append(names, e.Name)
		}
		return names
	}
	for _, test := range []struct {
		prefix, after string
		limit         int
		want          []string
	}{
		{"", "", 100, all},
		{"ab", "", 100, all[1:6]},
		{"ab/", "", 100, all[2:5]},
		{"ab/1", "", 100, all[2:3]},
		{"ab/", "", 2, all[2:4]},
		{"ab/", "ab/2", 2, all[4:5]},
		{"ab/", "ab/3", 2, nil},
		{"ab/", "a", 1, all[2:3]},
		{"ab/", "b", 9, nil},
		{"ab/", "ab/15", 9, all[3:5]},
		{"\xff", "", 9, all[7:]},
		{"\xff\xff", "", 9, all[8:]},
		{"c", "", 9, nil},
	} {
		if got := list(test.prefix, test.after, test.limit); !slices.Equal(got, test.want) {
			t.Errorf("list(%q, %q, %d) = %q, want %q", test.prefix, test.after, test.limit, got, test.want)
		}
	}
	var paged []string
	for page := list("", "", 2); page != nil; page = list("", page[len(page)-1], 2) {
		paged = append(paged, page...)
	}
	if !slices.Equal(paged, all) {
		t.Errorf("in pages: %q", paged)
	}
}

// testCounter: no update is lost among writers that compare and swap.
func testCounter(t *testing.T, s *store) {
	const writers, each = 4, 25
	s.put("n", "")
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				e, err := s.Get(s.ctx, "n")
				if err != nil {
					t.Error(err)
					return
				}
				_, err = s.Txn(s.ctx, []keystore.Compare{{Name: "n", Revision: e.Revision}}, []keystore.Write{{Name: "n", Value: append(e.Value, 'x')}})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, keystore.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if e, err := s.Get(s.ctx, "n"); err != nil || len(e.Value) != writers*each {
		t.Errorf("%d updates are left of %d, %v", len(e.Value), writers*each, err)
	}
}

func testClosed(t *testing.T, s *store) {
	s.put("a", "1")
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	_, errGet := s.Get(s.ctx, "a")
	_, errTxn := s.Txn(s.ctx, nil, []keystore.Write{{Name: "a"}})
	_, _, errList := s.List(s.ctx, "", "", 1)
	errWatch := s.Watch(s.ctx, "", 0, func([]keystore.Event) error { return nil })
	for _, err := range []error{errGet, errTxn, errList, errWatch} {
		if !errors.Is(err, keystore.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}
