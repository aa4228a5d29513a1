// Package record keeps the service's own records in the key store: sealed by the
// machine under a key derived from the root, and bound to their name and
// revision. A record that was edited, copied to another name or replaced by an
// older one under a newer number does not open, and is refused by name.
package record

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

// Keeper seals, opens and stores records.
type Keeper struct {
	Machine hsm.Machine
	Store   keystore.Store
}

// Record is a record in the clear, with what is needed to replace it.
type Record struct {
	Name    string
	Content []byte // JSON, or raw bytes
	Entry   int64  // the store's revision of the entry; 0 for a record not stored yet
	number  uint64 // the record's own revision
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
func (k Keeper) Get(ctx context.Context, name string) (Record, error) {
	e, err := k.Store.Get(ctx, name)
	if err != nil {
		return Record{}, err
	}
	opened, err := k.Open(ctx, []keystore.Entry{e})
	if err != nil {
		return Record{}, err
	}
	return opened[0], nil
}

// Open opens entries of the store. It fails as a whole, by the name of the first
// record that does not open.
func (k Keeper) Open(ctx context.Context, entries []keystore.Entry) ([]Record, error) {
	ops := make([]hsm.Op, len(entries))
	records := make([]Record, len(entries))
	for i, e := range entries {
		if len(e.Value) < head {
			return nil, fault.New(fault.RecordDamaged, "record %s: too short; restore the key store from a backup", e.Name)
		}
		number := binary.BigEndian.Uint64(e.Value)
		records[i] = Record{Name: e.Name, Entry: e.Revision, number: number}
		ops[i] = hsm.Op{Kind: hsm.OpenRecord, Record: hsm.RecordID{Name: e.Name, Revision: number}, Input: e.Value[head:]}
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

// Replace is the change that gives a record new content.
func Replace(r Record, content []byte) Change {
	r.Content = content
	return Change{Record: r}
}

// Delete is the change that removes a record.
func Delete(r Record) Change { return Change{Record: r, Delete: true} }

// Apply makes all changes or none, and returns the store's revision of them. A
// record that has changed since it was read is keystore.ErrConflict.
func (k Keeper) Apply(ctx context.Context, changes ...Change) (int64, error) {
	ops := make([]hsm.Op, len(changes))
	compares := make([]keystore.Compare, len(changes))
	writes := make([]keystore.Write, len(changes))
	for i, c := range changes {
		id := hsm.RecordID{Name: c.Name, Revision: c.number + 1}
		ops[i] = hsm.Op{
			Kind: hsm.SealRecord, Record: id, Input: c.Content,
			Output: binary.BigEndian.AppendUint64(nil, id.Revision),
		}
		compares[i] = keystore.Compare{Name: c.Name, Revision: c.Entry}
	}
	if err := k.Machine.Do(ctx, ops); err != nil {
		return 0, err
	}
	for i, c := range changes {
		if ops[i].Err != nil {
			return 0, ops[i].Err
		}
		writes[i] = keystore.Write{Name: c.Name, Value: ops[i].Output, Delete: c.Delete}
		if c.Delete {
			writes[i].Value = nil
		}
	}
	return k.Store.Txn(ctx, compares, writes)
}

// page is how many records Follow opens at a time.
const page = 1000

// Load calls f with every record under the prefix, in order of names, and returns
// the store's revision of the first page: a watch from there misses nothing.
func (k Keeper) Load(ctx context.Context, prefix string, f func(Record) error) (int64, error) {
	var from int64
	for after, first := "", true; ; first = false {
		entries, revision, err := k.Store.List(ctx, prefix, after, page)
		if err != nil {
			return 0, err
		}
		if first {
			from = revision
		}
		records, err := k.Open(ctx, entries)
		if err != nil {
			return 0, err
		}
		for _, r := range records {
			if err := f(r); err != nil {
				return 0, err
			}
		}
		if len(entries) < page {
			return from, nil
		}
		after = entries[len(entries)-1].Name
	}
}

// Update reads a record, lets f make its new content, and stores that; when
// somebody else was faster it begins again.
func Update[T any](ctx context.Context, k Keeper, name string, f func(*T) error) (T, int64, error) {
	for {
		var value T
		r, err := k.Get(ctx, name)
		if err != nil {
			return value, 0, err
		}
		if err := r.Decode(&value); err != nil {
			return value, 0, err
		}
		if err := f(&value); err != nil {
			return value, 0, err
		}
		content, err := JSON(value)
		if err != nil {
			return value, 0, err
		}
		revision, err := k.Apply(ctx, Replace(r, content))
		if !errors.Is(err, keystore.ErrConflict) {
			return value, revision, err
		}
	}
}
