package record

import (
	"context"
	"slices"
	"strings"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

// Snapshot calls f with the writes that make the records of one moment, the root entry
// with them, and the records as they open; a deletion is a record without content. It
// returns the store's revision of that moment.
func (k *Keeper) Snapshot(ctx context.Context, f func([]keystore.Write, []Record) error) (int64, error) {
	r := k.current.get()
	opener := &Reader{k, r}
	revision, err := k.Store.Snapshot(ctx, func(writes []keystore.Write) error {
		writes = slices.DeleteFunc(writes, func(w keystore.Write) bool {
			_, ours := r.name(w.Name)
			return !ours && w.Name != RootEntry
		})
		if len(writes) == 0 {
			return nil
		}
		records, err := opener.Open(ctx, writes)
		if err == nil {
			err = f(writes, records)
		}
		for _, r := range records {
			clear(r.Content) // some are secrets of apps
		}
		return err
	})
	if err == nil || k.moved(r) {
		now, failed := readRoot(ctx, k.Store)
		if failed != nil {
			return 0, failed
		}
		if now.Generation != r.Generation || k.moved(r) {
			err = fault.New(fault.Conflict, "the root key was rotated meanwhile; try again")
		}
	}
	return revision, err
}

// inOrder puts records and deletions in the order of their writes.
func inOrder(r root, writes []keystore.Write, records, gone []Record) []Record {
	out := make([]Record, 0, len(records)+len(gone))
	for _, w := range writes {
		switch {
		case !strings.HasPrefix(w.Name, space(r.Generation)):
		case w.Delete:
			out, gone = append(out, gone[0]), gone[1:]
		default:
			out, records = append(out, records[0]), records[1:]
		}
	}
	return out
}

// Reader opens the entries of a backup, in their order, without a store. It checks that
// they are records of the root that the keeper works under.
type Reader struct {
	keep *Keeper
	root root
}

// NewReader returns a reader that opens with a keeper's machine.
func NewReader(k *Keeper) *Reader { return &Reader{k, k.current.get()} }

// Open opens some entries; a deletion is a record without content.
func (x *Reader) Open(ctx context.Context, writes []keystore.Write) ([]Record, error) {
	var entries []keystore.Entry
	var gone []Record
	for _, w := range writes {
		name, ours := x.root.name(w.Name)
		switch {
		case ours && w.Delete:
			gone = append(gone, Record{Name: name})
		case ours:
			entries = append(entries, keystore.Entry{Name: w.Name, Value: w.Value})
		case w.Name != RootEntry:
			return nil, fault.New(fault.RecordDamaged, "record %s: no record of this root", w.Name)
		}
	}
	records, err := x.keep.open(ctx, x.root, entries)
	if err != nil {
		return nil, err
	}
	return inOrder(x.root, writes, records, gone), nil
}
