package record

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

// RootEntry is the name of the entry that says in the clear which root's records the
// store holds. Records of each generation of the root have their own names
// (g1/keys/0000000007), so that this one entry switches all of them.
const RootEntry = "root"

// root is the content of the root entry.
type root struct {
	Generation uint32 `json:"generation"`
	RootID     hsm.ID `json:"root_id"`

	// Frozen: until then nobody but the rotation under way changes a record. A
	// rotation that died leaves it in the past.
	Frozen time.Time `json:"frozen,omitzero"`

	revision int64 // the store's, of the entry
}

// freezeTime bounds how long a rotation may keep writers waiting: opening every record
// once takes some microseconds each.
const freezeTime = 20 * time.Second

// ErrRotated says that the root was rotated while a change was made: read again and make it
// anew.
var ErrRotated = errors.New("record: the root key was rotated meanwhile")

// current is the root that a keeper works under.
type current struct {
	mu   sync.RWMutex // guards root
	root root
}

func (c *current) get() root {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.root
}

func (c *current) set(r root) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.root = r
}

func space(generation uint32) string { return fmt.Sprintf("g%d/", generation) }

// name returns the record that an entry of this generation holds.
func (r root) name(entry string) (string, bool) { return strings.CutPrefix(entry, space(r.Generation)) }

func (r root) entry(name string) string { return space(r.Generation) + name }

func readRoot(ctx context.Context, s keystore.Store) (root, error) {
	e, err := s.Get(ctx, RootEntry)
	if err != nil {
		return root{}, err
	}
	r := root{revision: e.Revision}
	if err := json.Unmarshal(e.Value, &r); err != nil || r.Generation == 0 {
		return root{}, fault.New(fault.RecordDamaged, "record %s: damaged; restore the key store from a backup", RootEntry)
	}
	return r, nil
}

// RootOf tells which root's records a store holds, without opening any. A store
// without records is of no root.
func RootOf(ctx context.Context, s keystore.Store) (hsm.ID, error) {
	r, err := readRoot(ctx, s)
	if errors.Is(err, keystore.ErrNotFound) {
		return hsm.ID{}, nil
	}
	return r.RootID, err
}

// writeRoot replaces the root entry if nobody else has meanwhile.
func (k *Keeper) writeRoot(ctx context.Context, r root) (root, error) {
	value, err := JSON(r)
	if err != nil {
		return r, err
	}
	r.revision, err = k.Store.Txn(ctx, []keystore.Compare{{Name: RootEntry, Revision: r.revision}}, []keystore.Write{{Name: RootEntry, Value: value}})
	return r, err
}

// Attach makes the keeper work under the machine's root. The store must hold records
// of that root, or none.
func (k *Keeper) Attach(ctx context.Context) error {
	status, err := k.Machine.Status(ctx)
	if err != nil {
		return err
	}
	r, err := readRoot(ctx, k.Store)
	if errors.Is(err, keystore.ErrNotFound) {
		if err := k.blank(ctx); err != nil {
			return err
		}
		r, err = k.writeRoot(ctx, root{Generation: status.Generation, RootID: status.RootID})
		if errors.Is(err, keystore.ErrConflict) { // another node was faster
			r, err = readRoot(ctx, k.Store)
		}
	}
	if err != nil {
		return err
	}
	if r.Generation != status.Generation || r.RootID != status.RootID {
		return fault.New(fault.RootGeneration, "the key store holds records of root %s, generation %d, but the machine opened root %s, generation %d: "+
			"one of the two was restored from a backup, or is of another machine; bring back the one that belongs to the other",
			r.RootID, r.Generation, status.RootID, status.Generation)
	}
	if !r.Frozen.IsZero() {
		r.revision = -1 // the first change looks again, and waits
	}
	k.current.set(r)
	return nil
}

// blank makes sure that a store without a root entry has no records either. One that has
// is a copy that was cut short: the root entry is copied last.
func (k *Keeper) blank(ctx context.Context) error {
	entries, _, err := k.Store.List(ctx, "", "", 1)
	if err == nil && len(entries) > 0 {
		err = fault.New(fault.RecordDamaged, "the key store has the entry %q but does not say which root its records are of: "+
			"a copy into it was cut short; run trikey store migrate again, or give it another prefix or path", entries[0].Name)
	}
	return err
}

// Generation returns the generation of the root that records are kept under now.
func (k *Keeper) Generation() uint32 { return k.current.get().Generation }

// thaw waits until no rotation holds the records, and returns the root as it is then.
// Where it is no longer the one before, that is ErrRotated.
func (k *Keeper) thaw(ctx context.Context, before root) (root, error) {
	for {
		r, err := readRoot(ctx, k.Store)
		if err != nil {
			return r, err
		}
		if time.Now().After(r.Frozen) {
			if !r.Frozen.IsZero() {
				// Should that rotation be alive after all, it fails on this.
				r.Frozen = time.Time{}
				if r, err = k.writeRoot(ctx, r); errors.Is(err, keystore.ErrConflict) {
					continue
				} else if err != nil {
					return r, err
				}
			}
			switch {
			case r.Generation == before.Generation:
				k.current.set(r)
				return r, nil
			case k.current.get().Generation == r.Generation:
				return r, ErrRotated
			}
			return r, fault.New(fault.Unavailable, "the root key was rotated by another node; this one is reading its records anew: try again")
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
