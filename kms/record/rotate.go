package record

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

// Rotation is a move of every record to the next root, which the machine has open
// beside its own.
type Rotation struct {
	Generation uint32
	RootID     hsm.ID

	// Convert makes of records' content what they shall be under the next root.
	Convert func(ctx context.Context, records []Record) error

	// Switched is called when the store has switched to the next root, with every
	// record that it holds now, before anybody may change one. Then the old root is no
	// longer needed.
	Switched func(ctx context.Context, records []Record) error

	// Progress is told how many records are done, of how many.
	Progress func(done, total int)
}

// mover carries a rotation out.
type mover struct {
	*Keeper
	Rotation
	from, to root
	copied   map[string]int64 // the store's revision of each record, as it was copied
}

// Rotate copies every record to the next root, in batches, while the service goes on
// changing them; then holds changes, catches up, opens every copy once more, and
// switches in one transaction. Until then the old root's records are untouched and
// count; what an interrupted rotation has copied, the next one removes first.
func (k *Keeper) Rotate(ctx context.Context, r Rotation) error {
	if !k.rotating.CompareAndSwap(false, true) {
		return fault.New(fault.Conflict, "a rotation of the root key is under way already")
	}
	defer k.rotating.Store(false)
	m := &mover{Keeper: k, Rotation: r, from: k.current.get(), copied: map[string]int64{}}
	m.to = root{Generation: r.Generation, RootID: r.RootID}
	if err := m.clear(ctx, m.to); err != nil {
		return err
	}
	// Twice: the second time finds what changed during the first.
	for range 2 {
		if err := m.copyAll(ctx); err != nil {
			return err
		}
	}
	if err := m.freeze(ctx); err != nil {
		return err
	}
	records, err := m.finish(ctx)
	if err != nil {
		return errors.Join(err, m.unfreeze(context.WithoutCancel(ctx), m.from))
	}
	// From here on the next root counts, whatever happens.
	ctx = context.WithoutCancel(ctx)
	held := m.to
	held.revision = -1 // whoever changes a record waits until the machine has followed
	k.current.set(held)
	if err := m.Switched(ctx, records); err != nil {
		return err
	}
	if err := m.unfreeze(ctx, m.to); err != nil {
		return err
	}
	return m.clear(ctx, m.from)
}

// clear removes every record of a root that does not count.
func (m *mover) clear(ctx context.Context, r root) error {
	for {
		entries, _, err := m.Store.List(ctx, space(r.Generation), "", page)
		if err != nil || len(entries) == 0 {
			return err
		}
		writes := make([]keystore.Write, len(entries))
		for i, e := range entries {
			writes[i] = keystore.Write{Name: e.Name, Delete: true}
		}
		if err := m.write(ctx, writes); err != nil {
			return err
		}
	}
}

// write writes what need not be one transaction.
func (m *mover) write(ctx context.Context, writes []keystore.Write) error {
	for batch := range keystore.Batches(writes) {
		if _, err := m.Store.Txn(ctx, nil, batch); err != nil {
			return err
		}
	}
	return nil
}

// copyAll copies every record that is not copied as it is now, and removes copies of
// those that are gone.
func (m *mover) copyAll(ctx context.Context) error {
	seen := map[string]bool{}
	total, done := len(m.copied), 0
	if total == 0 { // the first time
		var err error
		if total, err = m.count(ctx); err != nil {
			return err
		}
	}
	_, err := m.pages(ctx, space(m.from.Generation), func(entries []keystore.Entry) error {
		var fresh []keystore.Entry
		for _, e := range entries {
			seen[e.Name] = true
			if m.copied[e.Name] != e.Revision {
				fresh = append(fresh, e)
			}
		}
		if err := m.copy(ctx, fresh); err != nil {
			return err
		}
		done += len(entries)
		m.Progress(done, max(done, total))
		return nil
	})
	if err != nil {
		return err
	}
	m.Progress(done, done)
	return m.forgetGone(ctx, seen)
}

func (m *mover) count(ctx context.Context) (n int, err error) {
	_, err = m.pages(ctx, space(m.from.Generation), func(entries []keystore.Entry) error { n += len(entries); return nil })
	return n, err
}

func (m *mover) forgetGone(ctx context.Context, seen map[string]bool) error {
	var writes []keystore.Write
	for entry := range m.copied {
		if seen[entry] {
			continue
		}
		name, _ := m.from.name(entry)
		writes = append(writes, keystore.Write{Name: m.to.entry(name), Delete: true})
		delete(m.copied, entry)
	}
	return m.write(ctx, writes)
}

// copy converts records and stores them, sealed under the next root with the number
// that they have.
func (m *mover) copy(ctx context.Context, entries []keystore.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	records, err := m.open(ctx, m.from, entries)
	if err != nil {
		return err
	}
	defer func() {
		for _, r := range records {
			clear(r.Content) // some are secrets of apps
		}
	}()
	if err := m.Convert(ctx, records); err != nil {
		return err
	}
	ops := make([]hsm.Op, len(records))
	for i, r := range records {
		ops[i] = hsm.Op{
			Kind: hsm.SealRecord, Record: hsm.RecordID{Name: r.Name, Revision: r.number}, Generation: m.to.Generation,
			Input: r.Content, Output: binary.BigEndian.AppendUint64(nil, r.number),
		}
	}
	if err := m.Machine.Do(ctx, ops); err != nil {
		return err
	}
	writes := make([]keystore.Write, len(ops))
	for i, op := range ops {
		if op.Err != nil {
			return op.Err
		}
		writes[i] = keystore.Write{Name: m.to.entry(records[i].Name), Value: op.Output}
	}
	if err := m.write(ctx, writes); err != nil {
		return err
	}
	for _, e := range entries {
		m.copied[e.Name] = e.Revision
	}
	return nil
}

// freeze has every writer wait until the rotation is through.
func (m *mover) freeze(ctx context.Context) (err error) {
	frozen := m.from
	frozen.Frozen = time.Now().Add(freezeTime)
	// A writer may have cleared an older mark meanwhile: then try again.
	for range 10 {
		if m.from, err = m.writeRoot(ctx, frozen); !errors.Is(err, keystore.ErrConflict) {
			return err
		}
		now, err := readRoot(ctx, m.Store)
		if err != nil {
			return err
		}
		frozen.revision = now.revision
	}
	return err
}

func (m *mover) unfreeze(ctx context.Context, r root) error {
	now, err := readRoot(ctx, m.Store)
	if err != nil {
		return err
	}
	now.Frozen = time.Time{}
	if now, err = m.writeRoot(ctx, now); err == nil && now.Generation == r.Generation {
		m.current.set(now)
	}
	return err
}

// finish catches up, opens every copy, and switches. It returns what the store holds
// from then on.
func (m *mover) finish(ctx context.Context) ([]Record, error) {
	if err := m.copyAll(ctx); err != nil {
		return nil, err
	}
	var records []Record
	_, err := m.pages(ctx, space(m.to.Generation), func(entries []keystore.Entry) error {
		opened, err := m.open(ctx, m.to, entries)
		records = append(records, opened...)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(records) != len(m.copied) {
		return nil, fault.New(fault.Internal, "%d of %d records were copied to the next root; nothing was switched: try again", len(records), len(m.copied))
	}
	next := m.to
	next.Frozen, next.revision = m.from.Frozen, m.from.revision
	if m.to, err = m.writeRoot(ctx, next); errors.Is(err, keystore.ErrConflict) {
		err = fault.New(fault.Unavailable, "the rotation took too long while changes waited for it; nothing was switched: try again")
	}
	return records, err
}
