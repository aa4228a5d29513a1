// Package keystore is where Trikey keeps what must outlive a process: an
// ordered map from names to values, with revisions. It knows no cryptography
// and no meaning of a value: what it holds is ciphertext already when it
// arrives.
//
// Every change happens in a transaction that first compares and then writes, so
// that two writers never overwrite each other unseen, on one node (keystore/bolt)
// or on many. A store counts its transactions: the revision of an entry is the
// number of the transaction that wrote it last, and a watch resumes from one.
//
// Every backend passes the suite in keystore/storetest.
package keystore

import (
	"context"
	"errors"
)

// Errors that every backend returns, wrapped or as they are.
var (
	// ErrNotFound: there is no entry of that name.
	ErrNotFound = errors.New("keystore: no such entry")
	// ErrConflict: a comparison of a transaction did not hold; nothing was written.
	ErrConflict = errors.New("keystore: compared entry has changed")
	// ErrCompacted: the history that a watch asked for is gone; list again.
	ErrCompacted = errors.New("keystore: revision is compacted")
	// ErrUnavailable: the store cannot be reached, or has no quorum; try again later. A
	// transaction that ended so may have been applied, or may be yet.
	ErrUnavailable = errors.New("keystore: unavailable")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("keystore: closed")
)

// Limits that every backend keeps to. Those of a transaction are what an etcd takes as it
// is installed (--max-txn-ops 128, --max-request-bytes 1.5 MiB).
const (
	MaxName     = 512             // bytes of an entry's name
	MaxValue    = 1 << 20         // bytes of an entry's value
	MaxTxn      = 128             // comparisons, and writes, in one transaction
	MaxTxnBytes = 1<<20 + 256<<10 // bytes of all names and values in one transaction
)

// Entry is a value under a name.
type Entry struct {
	Name     string
	Value    []byte
	Revision int64 // the transaction that wrote it last
}

// Compare is a condition of a transaction: the entry's revision is the one
// given. Revision 0 means that there is no such entry.
type Compare struct {
	Name     string
	Revision int64
}

// Write is one change of a transaction: put Value, or delete the entry.
type Write struct {
	Name   string
	Value  []byte
	Delete bool
}

// Event tells of one committed write.
type Event struct {
	Entry   // of a deletion: the name and the deleting transaction's revision
	Deleted bool
}

// Store is an ordered, revisioned map. All methods may be called concurrently.
// Values returned are the caller's own copies.
type Store interface {
	// Get returns the entry of that name, or ErrNotFound.
	Get(ctx context.Context, name string) (Entry, error)

	// Txn applies all writes if all comparisons hold, and returns the
	// transaction's revision, which all its entries then have. Otherwise it
	// writes nothing and returns ErrConflict. When it returns without error the
	// writes are on stable storage.
	Txn(ctx context.Context, compares []Compare, writes []Write) (int64, error)

	// List returns at most limit entries whose names begin with prefix and sort
	// after the name after, in byte order of names, and the store's revision at
	// that moment: all entries of a call are of one moment. A call that returns fewer
	// than limit entries has reached the end.
	List(ctx context.Context, prefix, after string, limit int) ([]Entry, int64, error)

	// Watch calls f, from one goroutine and in order, with the events of each
	// transaction after the revision from that touched a name with the prefix,
	// until ctx ends or f returns an error; it returns that error, or ErrCompacted if
	// the history since from is no longer kept, or ErrUnavailable when the store does
	// not answer: then watch again from the last revision seen. It never skips and
	// never repeats a transaction. Where the store is out of reach it may also wait in
	// silence, and goes on when the store is back.
	Watch(ctx context.Context, prefix string, from int64, f func([]Event) error) error

	// Snapshot calls f with writes which, carried out in order in an empty store, make
	// the state of one moment, and returns that moment's revision. Others go on writing
	// meanwhile. ErrCompacted says that they wrote too much: try again.
	Snapshot(ctx context.Context, f func([]Write) error) (int64, error)

	// Close ends all watches with ErrClosed and releases the store.
	Close() error
}

// Purger is a Store that can take what was replaced or deleted out of its files. etcd has
// no such operation: there, values of before are gone when all members are compacted and
// defragmented.
type Purger interface {
	// Purge removes what was replaced or deleted before the call from the files, the
	// history too: a watch that stays behind gets ErrCompacted.
	Purge(ctx context.Context) error
}
