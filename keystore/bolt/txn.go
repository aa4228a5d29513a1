package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"go.etcd.io/bbolt"

	"github.com/trikey/trikey/keystore"
)

// Get returns the entry of that name.
func (s *Store) Get(ctx context.Context, name string) (e keystore.Entry, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		v := tx.Bucket(entriesBucket).Get([]byte(name))
		if v == nil {
			return keystore.ErrNotFound
		}
		e = entry([]byte(name), v)
		return nil
	})
	return e, err
}

// entry copies an entry out of the file's pages.
func entry(name, v []byte) keystore.Entry {
	return keystore.Entry{Name: string(name), Revision: int64(binary.BigEndian.Uint64(v)), Value: bytes.Clone(v[8:])}
}

// List returns entries in order of their names.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) (list []keystore.Entry, revision int64, err error) {
	if limit < 1 {
		return nil, 0, fmt.Errorf("keystore: list of %d entries", limit)
	}
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		revision = number(tx, revisionKey)
		c := tx.Bucket(entriesBucket).Cursor()
		p := []byte(prefix)
		k, v := c.Seek(later(p, []byte(after)))
		if k != nil && after != "" && string(k) == after {
			k, v = c.Next()
		}
		size := 0
		for ; k != nil && bytes.HasPrefix(k, p) && len(list) < limit; k, v = c.Next() {
			list = append(list, entry(k, v))
			size += len(k) + len(v)
		}
		s.walked(tx, size)
		return nil
	})
	return list, revision, err
}

func later(a, b []byte) []byte {
	if bytes.Compare(a, b) > 0 {
		return a
	}
	return b
}

// Txn applies all writes if all comparisons hold.
func (s *Store) Txn(ctx context.Context, compares []keystore.Compare, writes []keystore.Write) (int64, error) {
	if err := keystore.CheckTxn(compares, writes); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	var revision int64
	err := s.guard(func() error {
		// Not db.Batch: it runs on a goroutine that guard does not reach, and
		// makes every single transaction wait for others.
		return s.closedError(s.db.Update(func(tx *bbolt.Tx) error {
			var err error
			revision, err = s.apply(tx, compares, writes)
			return err
		}))
	})
	if err != nil {
		return 0, err
	}
	if len(writes) > 0 {
		s.announce()
	}
	return revision, nil
}

func (s *Store) apply(tx *bbolt.Tx, compares []keystore.Compare, writes []keystore.Write) (int64, error) {
	entries := tx.Bucket(entriesBucket)
	for _, c := range compares {
		var revision int64
		if v := entries.Get([]byte(c.Name)); v != nil {
			revision = int64(binary.BigEndian.Uint64(v))
		}
		if revision != c.Revision {
			return 0, keystore.ErrConflict
		}
	}
	revision := number(tx, revisionKey)
	if len(writes) == 0 {
		return revision, nil
	}
	revision++
	history := tx.Bucket(historyBucket)
	// Names of new keys, and revisions, mostly grow: half empty pages would stay so.
	entries.FillPercent, history.FillPercent = pageFill, pageFill
	for i, w := range writes {
		var err error
		if w.Delete {
			err = entries.Delete([]byte(w.Name))
		} else {
			err = entries.Put([]byte(w.Name), append(binary.BigEndian.AppendUint64(nil, uint64(revision)), w.Value...))
		}
		if err == nil {
			err = history.Put(eventKey(revision, i), eventValue(w))
		}
		if err != nil {
			return 0, err
		}
	}
	s.walked(tx, len(writes)*os.Getpagesize()) // each in a page of its own, as a rule
	return revision, errors.Join(putNumber(tx, revisionKey, revision), s.compact(tx, revision))
}

// pageFill is how full a page is left that is split.
const pageFill = 0.9

// compact drops the history of transactions that are too old.
func (s *Store) compact(tx *bbolt.Tx, revision int64) error {
	floor := s.pinned(revision - int64(s.cfg.History))
	if floor <= number(tx, compactedKey) {
		return nil
	}
	c := tx.Bucket(historyBucket).Cursor()
	for k, _ := c.First(); k != nil && int64(binary.BigEndian.Uint64(k)) <= floor; k, _ = c.First() {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return putNumber(tx, compactedKey, floor)
}
