package bolt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
)

// What was replaced or deleted is in the file until it is purged, and not after; what
// counts stays, for readers and writers who go on meanwhile, and for a watch.
func TestPurge(t *testing.T) {
	path, ctx := filepath.Join(t.TempDir(), "store.db"), t.Context()
	s, err := bolt.Open(bolt.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	value := func(i, n int) []byte { return bytes.Repeat(fmt.Appendf(nil, "<%d.%d>", i, n), 40+i) }
	put := func(i, n int) {
		t.Helper()
		if _, err := s.Txn(ctx, nil, []keystore.Write{{Name: fmt.Sprint(i), Value: value(i, n), Delete: n == 0}}); err != nil {
			t.Fatal(err)
		}
	}
	const entries = 300
	seen := make(chan int64, 10*entries)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() {
		err := s.Watch(watching, "", 0, func(e []keystore.Event) error { seen <- e[0].Revision; return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the watch: %v", err)
		}
	})
	for n := 1; n <= 3; n++ {
		for i := range entries {
			put(i, n)
		}
	}
	for i := range entries / 3 {
		put(3*i, 0)
	}
	finds := func(i, n int) bool {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(raw, fmt.Appendf(nil, "<%d.%d>", i, n))
	}
	if !finds(7, 2) || !finds(9, 3) || !finds(7, 3) {
		t.Fatal("the scan finds nothing")
	}
	wg.Go(func() {
		for watching.Err() == nil {
			if _, _, err := s.List(watching, "", "", 1000); err != nil && watching.Err() == nil {
				t.Error(err)
			}
		}
	})
	if err := s.Purge(ctx); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		for i := range entries {
			for n := 1; n <= 3; n++ {
				if stays := n == 3 && i%3 != 0; finds(i, n) != stays {
					t.Errorf("value %d of entry %d is there: %v", n, i, !stays)
				}
			}
			if e, err := s.Get(ctx, fmt.Sprint(i)); i%3 != 0 && (err != nil || !bytes.Equal(e.Value, value(i, 3))) {
				t.Errorf("entry %d: %v", i, err)
			}
		}
	}
	check()
	if err := s.Watch(ctx, "", 5, func([]keystore.Event) error { return nil }); !errors.Is(err, keystore.ErrCompacted) {
		t.Errorf("a watch from before: %v", err)
	}
	put(entries, 1)
	for r := range seen {
		if r == 3*entries+entries/3+1 {
			break // the watch has missed nothing
		}
	}
	stop()
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = bolt.Open(bolt.Config{Path: path}); err != nil {
		t.Fatal(err)
	}
	check()
}
