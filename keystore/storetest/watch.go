package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/trikey/trikey/keystore"
)

// watch collects events as "name=value" and "-name", a transaction each, until it
// has n transactions.
func (s *store) watch(prefix string, from int64, n int) []string {
	s.t.Helper()
	var got []string
	enough := errors.New("enough")
	err := s.Watch(s.ctx, prefix, from, func(events []keystore.Event) error {
		got = append(got, render(events))
		if len(got) == n {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		s.t.Errorf("watch ended with %v after %q", err, got)
	}
	return got
}

func render(events []keystore.Event) string {
	var parts []string
	for _, e := range events {
		if e.Deleted {
			parts = append(parts, "-"+e.Name)
			continue
		}
		parts = append(parts, e.Name+"="+string(e.Value))
	}
	return strings.Join(parts, " ")
}

func testWatchPast(t *testing.T, s *store) {
	start := s.put("x/0", "0")
	s.put("x/a", "1")
	s.put("y/a", "2")
	s.remove("x/a")
	if _, err := s.Txn(s.ctx, nil, []keystore.Write{{Name: "x/b", Value: []byte("3")}, {Name: "y/b", Value: []byte("4")}, {Name: "x/c", Value: []byte("5")}}); err != nil {
		t.Fatal(err)
	}
	s.put("x/a", "6")
	want := []string{"x/a=1", "-x/a", "x/b=3 x/c=5", "x/a=6"}
	if got := s.watch("x/", start, len(want)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := s.watch("", 0, 1); !slices.Equal(got, []string{"x/0=0"}) {
		t.Errorf("from the beginning: %q", got)
	}
}

func testWatchLive(t *testing.T, s *store) {
	_, from, err := s.List(s.ctx, "", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	const n = 50
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			got := s.watch("k", from, n)
			for i, e := range got {
				if e != fmt.Sprintf("k=%d", i) {
					t.Errorf("event %d is %s", i, e)
				}
			}
		})
	}
	for i := range n {
		s.put("other", "")
		s.put("k", fmt.Sprint(i))
	}
	wg.Wait()
}

// testWatchResume: a watch that ends and resumes again and again, under writers,
// sees every transaction once.
func testWatchResume(t *testing.T, s *store) {
	const writers, each = 3, 40
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				s.put(fmt.Sprintf("w%d", w), fmt.Sprint(i))
			}
		})
	}
	seen := map[string]int{}
	var from int64
	pause := errors.New("pause")
	for total := 0; total < writers*each; {
		err := s.Watch(s.ctx, "w", from, func(events []keystore.Event) error {
			for _, e := range events {
				if seen[e.Name] != mustInt(t, string(e.Value)) {
					t.Errorf("%s: saw %s, want %d", e.Name, e.Value, seen[e.Name])
				}
				seen[e.Name]++
				from = e.Revision
			}
			if total++; total%7 == 0 || total == writers*each {
				return pause
			}
			return nil
		})
		if !errors.Is(err, pause) {
			t.Fatal(err)
		}
	}
	wg.Wait()
}

func mustInt(t *testing.T, s string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func testWatchEnds(t *testing.T, s *store) {
	ctx, cancel := context.WithCancel(s.ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Watch(ctx, "", 0, func([]keystore.Event) error { cancel(); return nil }) }()
	s.put("a", "1")
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	go func() { ended <- s.Watch(s.ctx, "none", 0, func([]keystore.Event) error { return nil }) }()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, keystore.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
