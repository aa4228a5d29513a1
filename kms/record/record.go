// Package record keeps the service's own records in the key store: sealed by the
// machine under a key derived from the root, and bound to their name and
// revision. A record that was edited, copied to another name or replaced by an
// older one under a newer number does not open, and is refused by name.
package record

import (
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

// Keeper seals, opens and stores records, under one generation of the root: Attach
// finds which, and Rotate moves to the next.
type Keeper struct {
	Machine hsm.Machine
	Store   keystore.Store
	current current

	rotating atomic.Bool // by this process
	changing sync.Mutex  // held by Apply: every change rewrites the index of revisions
}

// Record is a record in the clear, with what is needed to replace it.
type Record struct {
	Name    string
	Content []byte // JSON, or raw bytes
	Entry   int64  // the store's revision of the entry; 0 for a record not stored yet
	number  uint64 // the record's own revision

	generation uint32 // of the root that it was read under; 0 for a record not stored yet
}

// head is the record's own revision, in front of the sealed bytes.
const head = 8

// Decode decodes a JSON record.
func (r Record) Decode(into any) error {
	if err := json.Unmarshal(r.Content, into); err != nil {
		return fault.Wrap(fault.RecordDamaged, err, "record %s is not what this release writes; was it written by a newer one?", r.Name)
	}
	return nil
}

// JSON encodes a record's content.
func JSON(v any) ([]byte, error) { return json.Marshal(v, json.Deterministic(true)) }

// Get reads one record.
func (k *Keeper) Get(ctx context.Context, name string) (Record, error) {
	for {
		r := k.current.get()
		e, err := k.Store.Get(ctx, r.entry(name))
		if err == nil {
			var opened []Record
			if opened, err = k.open(ctx, r, []keystore.Entry{e}); err == nil {
				return opened[0], nil
			}
		}
		if !k.moved(r) {
			return Record{}, err
		}
	}
}

// moved reports whether the root was rotated since r was got: what is of r is gone.
func (k *Keeper) moved(r root) bool { return k.current.get().Generation != r.Generation }

// open opens entries of the store. It fails as a whole, by the name of the first
// record that does not open.
func (k *Keeper) open(ctx context.Context, r root, entries []keystore.Entry) ([]Record, error) {
	ops := make([]hsm.Op, len(entries))
	records := make([]Record, len(entries))
	for i, e := range entries {
		name, ok := r.name(e.Name)
		if !ok || len(e.Value) < head {
			return nil, fault.New(fault.RecordDamaged, "record %s: not a sealed record; restore the key store from a backup", e.Name)
		}
		number := binary.BigEndian.Uint64(e.Value)
		records[i] = Record{Name: name, Entry: e.Revision, number: number, generation: r.Generation}
		ops[i] = hsm.Op{Kind: hsm.OpenRecord, Record: hsm.RecordID{Name: name, Revision: number}, Input: e.Value[head:]}
	}
	if err := k.Machine.Do(ctx, ops); err != nil {
		return nil, err
	}
	for i := range ops {
		if ops[i].Err != nil {
			return nil, ops[i].Err
		}
		records[i].Content = ops[i].Output
	}
	return records, nil
}

// Change is one record of a transaction: new content under its name, or its
// deletion. It applies only while the stored record is the one it was read as.
type Change struct {
	Record
	Delete bool
}

// Create is the change that adds a record where there is none.
func Create(name string, content []byte) Change {
	return Change{Record: Record{Name: name, Content: content}}
}

// Under has the change apply under that generation of the root only, because what it
// stores is of that generation.
func (c Change) Under(generation uint32) Change {
	c.generation = generation
	return c
}

// Replace is the change that gives a record new content.
func Replace(r Record, content []byte) Change {
	r.Content = content
	return Change{Record: r}
}

// Delete is the change that removes a record.
func Delete(r Record) Change { return Change{Record: r, Delete: true} }

// Apply makes all changes or none, and returns the store's revision of them. A
// record that has changed since it was read is keystore.ErrConflict; a root that was
// rotated since then is ErrRotated.
func (k *Keeper) Apply(ctx context.Context, changes ...Change) (int64, error) {
	k.changing.Lock()
	defer k.changing.Unlock()
	r := k.current.get()
	for {
		all, err := k.withRevisions(ctx, r, changes)
		var compares []keystore.Compare
		var writes []keystore.Write
		if err == nil {
			compares, writes, err = k.seal(ctx, r, all)
		}
		if err != nil && k.moved(r) {
			return 0, ErrRotated
		}
		if err != nil {
			return 0, err
		}
		// Whoever rotates the root rewrites its entry before the last look at the
		// records: a change made on the old root is never missed.
		compares = append(compares, keystore.Compare{Name: RootEntry, Revision: r.revision})
		revision, err := k.Store.Txn(ctx, compares, writes)
		if !errors.Is(err, keystore.ErrConflict) {
			return revision, err
		}
		now, thawErr := k.thaw(ctx, r)
		if thawErr != nil {
			return 0, thawErr
		}
		if now.revision == r.revision {
			if same, lookErr := k.unchanged(ctx, r, changes); !same {
				return 0, errors.Join(lookErr, err)
			}
		}
		r = now
	}
}

// seal makes store writes of changes, and the comparisons that they need.
func (k *Keeper) seal(ctx context.Context, r root, changes []Change) ([]keystore.Compare, []keystore.Write, error) {
	ops := make([]hsm.Op, len(changes))
	compares := make([]keystore.Compare, len(changes), len(changes)+1)
	writes := make([]keystore.Write, len(changes))
	for i, c := range changes {
		if c.generation != 0 && c.generation != r.Generation {
			return nil, nil, ErrRotated
		}
		id := hsm.RecordID{Name: c.Name, Revision: c.number + 1}
		ops[i] = hsm.Op{
			Kind: hsm.SealRecord, Record: id, Generation: r.Generation, Input: c.Content,
			Output: binary.BigEndian.AppendUint64(nil, id.Revision),
		}
		compares[i] = keystore.Compare{Name: r.entry(c.Name), Revision: c.Entry}
	}
	if err := k.Machine.Do(ctx, ops); err != nil {
		return nil, nil, err
	}
	for i, c := range changes {
		if ops[i].Err != nil {
			return nil, nil, ops[i].Err
		}
		writes[i] = keystore.Write{Name: r.entry(c.Name), Value: ops[i].Output, Delete: c.Delete}
		if c.Delete {
			writes[i].Value = nil
		}
	}
	return compares, writes, nil
}

// page is how many records are opened at a time.
const page = 500

// Load calls f with every record under the prefix, in order of names, and returns
// the store's revision of the first page: a watch from there misses nothing.
func (k *Keeper) Load(ctx context.Context, prefix string, f func(Record) error) (int64, error) {
	r := k.current.get()
	return k.pages(ctx, r.entry(prefix), func(entries []keystore.Entry) error { return k.each(ctx, r, entries, f) })
}

func (k *Keeper) each(ctx context.Context, r root, entries []keystore.Entry, f func(Record) error) error {
	records, err := k.open(ctx, r, entries)
	if err != nil {
		return err
	}
	for _, r := range records {
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

// LoadMany is Load for very many records: f is called from several goroutines, and in any
// order.
func (k *Keeper) LoadMany(ctx context.Context, prefix string, f func(Record) error) (int64, error) {
	r := k.current.get()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	pages := make(chan []keystore.Entry)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for entries := range pages {
				if err := k.each(ctx, r, entries, f); err != nil {
					stop(err)
				}
			}
		})
	}
	from, err := k.pages(ctx, r.entry(prefix), func(entries []keystore.Entry) error {
		select {
		case pages <- entries:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	close(pages)
	workers.Wait()
	if failed := context.Cause(ctx); failed != nil {
		return 0, failed
	}
	return from, err
}

// pages calls f with the entries under a prefix, some at a time, and returns the
// store's revision of the first of them.
func (k *Keeper) pages(ctx context.Context, prefix string, f func([]keystore.Entry) error) (int64, error) {
	var from int64
	for after, first := "", true; ; first = false {
		entries, revision, err := k.Store.List(ctx, prefix, after, page)
		if err != nil {
			return 0, err
		}
		if first {
			from = revision
		}
		if err := f(entries); err != nil {
			return 0, err
		}
		if len(entries) < page {
			return from, nil
		}
		after = entries[len(entries)-1].Name
	}
}

// Event is a change of a record that somebody made.
type Event struct {
	Record
	Deleted bool // then Content is empty, and Entry is the deletion's
}

// Watch calls f with every change after the store's revision from, until ctx ends or f
// fails, and returns the revision up to which f has seen all. When another process has
// rotated the root the error is ErrRotated.
func (k *Keeper) Watch(ctx context.Context, from int64, f func(Event) error) (int64, error) {
	err := k.Store.Watch(ctx, "", from, func(events []keystore.Event) error {
		for _, e := range events {
			r := k.current.get()
			name, ours := r.name(e.Name)
			switch {
			case e.Name == RootEntry:
				now, err := readRoot(ctx, k.Store)
				if errors.Is(err, keystore.ErrUnavailable) {
					return err
				}
				if err != nil || now.Generation > k.current.get().Generation && !k.rotating.Load() {
					return errors.Join(err, ErrRotated)
				}
			case ours && e.Deleted:
				if err := f(Event{Record: Record{Name: name, Entry: e.Revision}, Deleted: true}); err != nil {
					return err
				}
			case ours:
				opened, err := k.open(ctx, r, []keystore.Entry{e.Entry})
				if err != nil && k.moved(r) {
					continue // the rotation has carried it over
				}
				if err != nil {
					return err
				}
				if err := f(Event{Record: opened[0]}); err != nil {
					return err
				}
			}
		}
		from = events[0].Revision
		return nil
	})
	return from, err
}

// Update reads a record, lets f make its new content, and stores that; when
// somebody else was faster it begins again.
func Update[T any](ctx context.Context, k *Keeper, name string, f func(*T) error) (T, int64, error) {
	for {
		var value T
		r, err := k.Get(ctx, name)
		if err != nil {
			return value, 0, err
		}
		if err := r.Decode(&value); err != nil {
			return value, 0, err
		}
		if err := f(&value); errors.Is(err, ErrRotated) {
			continue
		} else if err != nil {
			return value, 0, err
		}
		content, err := JSON(value)
		if err != nil {
			return value, 0, err
		}
		revision, err := k.Apply(ctx, Replace(r, content))
		if !errors.Is(err, keystore.ErrConflict) && !errors.Is(err, ErrRotated) {
			return value, revision, err
		}
	}
}
