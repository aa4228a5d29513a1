package bolt

import (
	"context"

	"go.etcd.io/bbolt"

	"github.com/trikey/trikey/keystore"
)

// snapshotPage is how many entries are read at a time.
const snapshotPage = 500

// Snapshot gives pages of entries, each of its moment, and then the changes from the
// moment of the first to that of the last. A single reading transaction would do without
// those, but a slow reader of it keeps pages from being used again and writers from
// growing the file.
func (s *Store) Snapshot(ctx context.Context, f func([]keystore.Write) error) (int64, error) {
	s.history.RLock()
	defer s.history.RUnlock()
	first, err := s.pin(ctx)
	if err != nil {
		return 0, err
	}
	defer s.unpin(first)
	last := first
	for after, more := "", true; more; {
		entries, revision, err := s.List(ctx, "", after, snapshotPage)
		if err != nil {
			return 0, err
		}
		last = revision
		if more = len(entries) == snapshotPage; len(entries) == 0 {
			break
		}
		after = entries[len(entries)-1].Name
		writes := make([]keystore.Write, len(entries))
		for i, e := range entries {
			writes[i] = keystore.Write{Name: e.Name, Value: e.Value}
		}
		if err := f(writes); err != nil {
			return 0, err
		}
	}
	for first < last {
		events, to, err := s.eventsAfter(ctx, first)
		if err != nil {
			return 0, err
		}
		var writes []keystore.Write
		for _, e := range events {
			if e.Revision <= last {
				writes = append(writes, keystore.Write{Name: e.Name, Value: e.Value, Delete: e.Deleted})
			}
		}
		if err := f(writes); err != nil {
			return 0, err
		}
		first = to
	}
	return last, nil
}

// pin keeps the history from now on until unpin: writers may be faster than who reads the
// snapshot.
func (s *Store) pin(ctx context.Context) (revision int64, err error) {
	// Nothing is dropped between the two: only a transaction drops, after writing.
	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.view(ctx, func(tx *bbolt.Tx) error { revision = number(tx, revisionKey); return nil })
	if err == nil {
		s.pins[revision]++
	}
	return revision, err
}

func (s *Store) unpin(revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[revision]--; s.pins[revision] == 0 {
		delete(s.pins, revision)
	}
}

// pinned returns the newest transaction, up to one, that the history can do without.
func (s *Store) pinned(floor int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for revision := range s.pins {
		floor = min(floor, revision)
	}
	return floor
}
