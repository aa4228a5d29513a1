package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"time"

	"go.etcd.io/bbolt"

	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

var _ keystore.Purger = (*Store)(nil)

// watcherPatience is how long Purge waits for watches that are behind. One that still is
// has to list again.
const watcherPatience = time.Second

// Purge drops the history and overwrites every free page of the file.
//
// A page is free when the last two transactions of bbolt do without it and nobody reads
// it: the next transaction would overwrite it as well. So a death at any moment leaves a
// good file; the next Purge does what is left.
func (s *Store) Purge(ctx context.Context) error {
	s.history.Lock()
	defer s.history.Unlock()
	last := s.awaitWatchers(ctx)
	return s.guard(func() error {
		if err := s.closedError(s.db.Update(func(tx *bbolt.Tx) error { return s.dropHistory(tx, last) })); err != nil {
			return err
		}
		failpoint.Hit("history-dropped")
		s.reading.Lock()
		defer s.reading.Unlock()
		tx, err := s.db.Begin(true)
		if err != nil {
			return s.closedError(err)
		}
		return errors.Join(s.overwriteFree(tx), tx.Rollback())
	})
}

// dropHistory drops the transactions up to last, which every watch has seen. What has come
// since stays.
func (s *Store) dropHistory(tx *bbolt.Tx, last int64) error {
	type event struct{ key, value []byte }
	var since []event
	c := tx.Bucket(historyBucket).Cursor()
	for k, v := c.Seek(eventKey(last+1, 0)); k != nil; k, v = c.Next() {
		since = append(since, event{bytes.Clone(k), bytes.Clone(v)})
	}
	// Deleting them one by one takes bbolt quadratic time.
	if err := tx.DeleteBucket(historyBucket); err != nil {
		return err
	}
	history, err := tx.CreateBucket(historyBucket)
	for _, e := range since {
		err = errors.Join(err, history.Put(e.key, e.value))
	}
	return errors.Join(err, putNumber(tx, compactedKey, max(last, number(tx, compactedKey))))
}

// overwriteFree zeroes the free pages. tx is the only transaction there is.
func (s *Store) overwriteFree(tx *bbolt.Tx) (err error) {
	f, err := os.OpenFile(s.cfg.Path, os.O_RDWR, 0)
	if err != nil {
		return s.damaged(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size := tx.DB().Info().PageSize
	zero, old := make([]byte, size), make([]byte, size)
	for id := 0; ; id++ {
		p, err := tx.Page(id)
		if err != nil || p == nil {
			return errors.Join(err, f.Sync())
		}
		if p.Type != "free" {
			continue
		}
		at := int64(id) * int64(size)
		if _, err := f.ReadAt(old, at); err != nil {
			return s.damaged(err)
		}
		if [16]byte(old[:16]) == [16]byte{} && allZero(old) {
			continue
		}
		if _, err := f.WriteAt(zero, at); err != nil {
			return fault.Wrap(fault.Unavailable, err, "what was destroyed cannot be overwritten in the key store's file; mend the disk: it is tried again")
		}
		failpoint.HitNumber("page-zeroed", id)
	}
}

func allZero(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
	}
	return true
}

// awaitWatchers waits until every watch has seen the last transaction, and returns which
// that is.
func (s *Store) awaitWatchers(ctx context.Context) (last int64) {
	if s.view(ctx, func(tx *bbolt.Tx) error { last = number(tx, revisionKey); return nil }) != nil {
		return 0 // Purge finds out itself
	}
	deadline := time.NewTimer(watcherPatience)
	defer deadline.Stop()
	for {
		s.mu.Lock()
		behind, moved := false, s.moved
		for _, seen := range s.watches {
			behind = behind || *seen < last
		}
		s.mu.Unlock()
		if !behind {
			return last
		}
		select {
		case <-moved:
		case <-deadline.C:
			return last
		case <-s.closed:
			return last
		case <-ctx.Done():
			return last
		}
	}
}

// watch registers a watch that has seen everything up to from; advance tells how far it is.
func (s *Store) watch(from int64) (advance func(to int64), end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchID++
	id, seen := s.watchID, &from
	s.watches[id] = seen
	step := func(f func()) {
		s.mu.Lock()
		defer s.mu.Unlock()
		f()
		close(s.moved)
		s.moved = make(chan struct{})
	}
	return func(to int64) { step(func() { *seen = to }) }, func() { step(func() { delete(s.watches, id) }) }
}
