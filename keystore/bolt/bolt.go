// Package bolt keeps a key store in one bbolt file, for one node. One process
// has the file at a time.
//
// The file holds four things: the entries; a history of the last transactions,
// from which a watch resumes; the number of the last transaction; and the number
// of the newest transaction that the history has dropped. All four change in one
// bbolt transaction, which is on the disk before Txn returns.
//
// bbolt panics, or the processor faults, where a page of the file is damaged.
// Every access here runs under guard, which turns that into fault.StoreDamaged,
// and Open walks the whole file once, so that damage is found before anything is
// served.
package bolt

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

var (
	entriesBucket = []byte("entries") // name -> revision 8 | value
	historyBucket = []byte("history") // revision 8 | number 4 -> deleted 1 | name length 2 | name | value
	metaBucket    = []byte("meta")
	formatKey     = []byte("format")    // the format's version
	revisionKey   = []byte("revision")  // of the last transaction
	compactedKey  = []byte("compacted") // the newest transaction that the history has dropped
)

// format is the version of the layout above.
const format = 1

// Config is what Open needs.
type Config struct {
	Path string

	// History is how many transactions a watch can look back, 2,000 when zero. Only
	// this process watches the file.
	History int

	// LockTimeout is how long Open waits for a process that has the file; one
	// second when zero.
	LockTimeout time.Duration
}

// Store is a key store in a file.
type Store struct {
	cfg Config
	db  *bbolt.DB

	read atomic.Int64 // bytes walked through since the last release

	history sync.RWMutex // held for writing while the history is dropped, for reading by who needs all of it
	reading sync.RWMutex // held for reading by reading transactions, for writing while there must be none

	mu      sync.Mutex       // guards all below
	watches map[int64]*int64 // how far each watch is
	watchID int64            // of the last one
	pins    map[int64]int    // revisions since which snapshots need the history, and how many do
	moved   chan struct{}    // closed, and made anew, when a watch gets further
	changed chan struct{}    // closed, and made anew, by each transaction
	closed  chan struct{}    // closed by Close
	ended   bool
}

var _ keystore.Store = (*Store)(nil)

// Open opens the file, and creates it if it is not there. A file that is locked
// is fault.StoreLocked; one that is damaged is fault.StoreDamaged and stays as it
// is.
func Open(cfg Config) (*Store, error) {
	if cfg.History == 0 {
		cfg.History = 2_000
	}
	if cfg.LockTimeout == 0 {
		cfg.LockTimeout = time.Second
	}
	s := &Store{
		cfg: cfg, watches: map[int64]*int64{}, pins: map[int64]int{},
		moved: make(chan struct{}), changed: make(chan struct{}), closed: make(chan struct{}),
	}
	fresh, err := isFresh(cfg.Path)
	if err != nil {
		return nil, err
	}
	if err := s.guard(func() error { return s.open(fresh) }); err != nil {
		// A file that made bbolt panic stays open: closing it would trip again.
		// The process is about to end with this error.
		return nil, err
	}
	return s, nil
}

// isFresh reports whether bbolt shall make a new file. bbolt also makes one of an
// empty file; an empty key store that ought to have keys is not a new one.
func isFresh(path string) (bool, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return true, nil
	case err != nil:
		return false, fault.Wrap(fault.StoreDamaged, err, "the key store cannot be opened")
	case !info.Mode().IsRegular():
		return false, fault.New(fault.StoreDamaged, "%s is not a file; name the key store's file", path)
	case info.Size() == 0:
		return false, fault.New(fault.StoreDamaged, "%s is empty; restore it from a backup, or delete it to begin a new key store", path)
	}
	return false, nil
}

func (s *Store) open(fresh bool) (err error) {
	s.db, err = bbolt.Open(s.cfg.Path, 0o600, &bbolt.Options{Timeout: s.cfg.LockTimeout, FreelistType: bbolt.FreelistMapType})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fault.New(fault.StoreLocked, "%s is in use by another process; stop that one, or use its admin socket", s.cfg.Path)
	case errors.Is(err, os.ErrPermission):
		return fault.Wrap(fault.FileMode, err, "the key store cannot be opened; run as its owner")
	case err != nil:
		return s.damaged(err)
	}
	if fresh {
		return s.initialise()
	}
	if err := s.check(); err != nil {
		return errors.Join(err, s.db.Close())
	}
	return nil
}

func (s *Store) initialise() error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{entriesBucket, historyBucket, metaBucket} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return putNumber(tx, formatKey, format)
	})
}

// check walks the whole file.
func (s *Store) check() error {
	return s.db.View(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{entriesBucket, historyBucket, metaBucket} {
			if tx.Bucket(name) == nil {
				return s.damaged(errors.New("it is not a Trikey key store, or its creation was cut short"))
			}
		}
		if f := number(tx, formatKey); f != format {
			return fault.New(fault.StoreDamaged, "%s has format %d; this release reads format %d: use the release that wrote it",
				s.cfg.Path, f, format)
		}
		last := number(tx, revisionKey)
		defer s.release(tx)
		err := tx.Bucket(entriesBucket).ForEach(func(k, v []byte) error {
			s.walked(tx, len(k)+len(v))
			if len(v) < 8 || binary.BigEndian.Uint64(v) > uint64(last) {
				return s.damaged(errors.New("an entry has no valid revision"))
			}
			return nil
		})
		if err != nil {
			return err
		}
		return tx.Bucket(historyBucket).ForEach(func(k, v []byte) error {
			s.walked(tx, len(k)+len(v))
			if _, _, err := splitEvent(k, v); err != nil {
				return s.damaged(err)
			}
			return nil
		})
	})
}

// releaseEvery is how many bytes are walked through before their pages are given back.
const releaseEvery = 16 << 20

func (s *Store) walked(tx *bbolt.Tx, bytes int) {
	if s.read.Add(int64(bytes)) > releaseEvery {
		s.read.Store(0)
		s.release(tx)
	}
}

// release gives the file's pages back that are mapped into the process: after a walk
// through all of it they are not needed soon, and would count as its memory. Whoever
// reads one gets it again.
func (s *Store) release(tx *bbolt.Tx) {
	// What cannot be given back stays mapped.
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, s.db.Info().Data, uintptr(tx.Size()), unix.MADV_DONTNEED)
}

func number(tx *bbolt.Tx, key []byte) int64 {
	v := tx.Bucket(metaBucket).Get(key)
	if len(v) != 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(v))
}

func putNumber(tx *bbolt.Tx, key []byte, n int64) error {
	return tx.Bucket(metaBucket).Put(key, binary.BigEndian.AppendUint64(nil, uint64(n)))
}

// view runs f on a snapshot.
func (s *Store) view(ctx context.Context, f func(tx *bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.reading.RLock()
	defer s.reading.RUnlock()
	return s.guard(func() error { return s.closedError(s.db.View(f)) })
}

func (s *Store) closedError(err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return keystore.ErrClosed
	}
	return err
}

// Close ends all watches and releases the file.
func (s *Store) Close() error {
	s.mu.Lock()
	ended := s.ended
	if !ended {
		s.ended = true
		close(s.closed)
	}
	s.mu.Unlock()
	if ended {
		return nil
	}
	return s.db.Close()
}
