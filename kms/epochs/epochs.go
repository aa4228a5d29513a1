// Package epochs has the destruction keys: each version of a business key is stored
// sealed once more under one of its own, and destroying the version erases that. They
// are in one small file beside the key store, never in it nor in a backup of it, so that
// an older backup, with every card, no longer opens what was destroyed since.
//
// The keys are the leaves of a tree of secrets. A new key needs no change of the file;
// the destruction of one replaces a secret above it by those beside the way to it. So
// nodes that have a copy of the file bring it up to date by themselves: what they need to
// know, which versions are destroyed, is in the records.
//
// The file is sealed by the machine as records are, bound to its counter.
// docs/adr/0016 tells why it is so.
package epochs

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
)

// File is the name of the file.
const File = "epochs"

// Keys are the destruction keys of a key store. They may be used concurrently. Close
// wipes them.
type Keys struct {
	machine hsm.Machine
	dir     string // "": they are not kept

	mu          sync.RWMutex // guards all below
	id          hsm.ID
	counter     uint64
	generations []uint32 // of the roots that the file is sealed under
	tree        *tree
	closed      bool
}

// Create makes the destruction keys of a new key store, and the file in dir.
func Create(ctx context.Context, machine hsm.Machine, dir string) (*Keys, error) {
	status, err := machine.Status(ctx)
	if err != nil {
		return nil, err
	}
	t, err := newTree()
	if err != nil {
		return nil, err
	}
	k := &Keys{machine: machine, dir: dir, id: hsm.NewID(), tree: t}
	if err := k.write(ctx, t, 0, []uint32{status.Generation}); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// Open reads the file in dir. One that is not there is fault.NotFound.
func Open(ctx context.Context, machine hsm.Machine, dir string) (*Keys, error) {
	raw, err := os.ReadFile(filepath.Join(dir, File))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.NotFound, err, "there is no file of destruction keys")
	}
	if err != nil {
		return nil, fault.Wrap(fault.RecordDamaged, err, "the destruction keys")
	}
	k, err := Read(ctx, machine, raw)
	if err != nil {
		return nil, err
	}
	k.dir = dir
	// A rotation of the root that was cut short leaves a sealing under the other root.
	if head, _, _ := parse(raw); len(head.Generations) > 1 {
		err = k.write(ctx, k.tree, k.counter, k.generations)
	}
	if err = errors.Join(err, k.tidy()); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// Read reads a file's content. What is changed of these keys is not kept.
func Read(ctx context.Context, machine hsm.Machine, raw []byte) (*Keys, error) {
	status, err := machine.Status(ctx)
	if err != nil {
		return nil, err
	}
	head, sealings, err := parse(raw)
	if err != nil {
		return nil, err
	}
	at := slices.Index(head.Generations, status.Generation)
	if at < 0 {
		return nil, fault.New(fault.RootGeneration, "the destruction keys are sealed under generation %d of the root key, the machine is at %d: "+
			"copy the file %s of the node that rotated the root, or of the time of the backup", head.Generations[0], status.Generation, File)
	}
	t, err := open(ctx, machine, head, sealings[at])
	if err != nil {
		return nil, err
	}
	return &Keys{machine: machine, id: head.ID, counter: head.Counter, generations: []uint32{status.Generation}, tree: t}, nil
}

// ID tells these destruction keys from those of other key stores.
func (k *Keys) ID() hsm.ID { return k.id }

// Counter counts the destructions up to the newest that the keys reflect.
func (k *Keys) Counter() uint64 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.counter
}

// Gone reports whether the destruction key of a version is erased, as far as that is known:
// closed keys know of none.
func (k *Keys) Gone(l Leaf) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return !k.closed && k.tree.above(l.path()) < 0
}

// Locked is a wrapped key sealed once more under its destruction key: length 2 | AES key
// wrap with padding (RFC 5649). Its text form is tl1. and base64url without padding.
type Locked string

const lockedPrefix = "tl1."

// String returns the text form.
func (l Locked) String() string {
	if l == "" {
		return ""
	}
	return lockedPrefix + base64.RawURLEncoding.EncodeToString([]byte(l))
}

// MarshalText returns the text form.
func (l Locked) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText parses the text form.
func (l *Locked) UnmarshalText(text []byte) error {
	rest, ok := strings.CutPrefix(string(text), lockedPrefix)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if !ok || err != nil {
		return fault.New(fault.RecordDamaged, "locked key: not of the form %s…", lockedPrefix)
	}
	*l = Locked(raw)
	return nil
}

// Item is a wrapped key in both forms. The result is put where the other one is not.
type Item struct {
	Leaf
	Wrapped hsm.WrappedKey
	Locked  Locked
}

// Lock makes the locked form of each wrapped key.
func (k *Keys) Lock(items []Item) error {
	return k.each(items, func(it *Item, key []byte) error {
		if key == nil {
			return fault.New(fault.KeyDestroyed, "version %d of key %d is destroyed: nothing is kept under that number again", it.Version, it.Index)
		}
		sealed, err := alg.WrapKWP(key, []byte(it.Wrapped))
		if err != nil {
			return err
		}
		it.Locked = Locked(append(binary.BigEndian.AppendUint16(nil, uint16(len(it.Wrapped))), sealed...))
		return nil
	})
}

// Unlock opens each locked key. Where the destruction key is erased, the wrapped key stays
// empty.
func (k *Keys) Unlock(items []Item) error {
	return k.each(items, func(it *Item, key []byte) error {
		if key == nil {
			return nil
		}
		sealed := []byte(it.Locked)
		if len(sealed) < 2 {
			return altered(it.Leaf)
		}
		wrapped := make([]byte, binary.BigEndian.Uint16(sealed))
		if alg.UnwrapKWP(wrapped, key, sealed[2:]) != nil {
			return altered(it.Leaf)
		}
		it.Wrapped = hsm.WrappedKey(wrapped)
		return nil
	})
}

// each calls f with each item and its destruction key, nil where that is erased.
func (k *Keys) each(items []Item, f func(it *Item, key []byte) error) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.closed {
		return errClosed
	}
	return k.tree.walk(func(w *walker) error {
		for i := range items {
			if err := f(&items[i], w.leaf(items[i].path())); err != nil {
				return err
			}
		}
		return nil
	})
}

func altered(l Leaf) error {
	return fault.New(fault.RecordDamaged, "version %d of key %d: its destruction key is not the one that it was sealed under; "+
		"bring back the file %s that belongs to the key store", l.Version, l.Index, File)
}

// Destroy erases the destruction keys of versions for good when it returns nil, and raises
// the counter to at least the given one.
func (k *Keys) Destroy(ctx context.Context, counter uint64, leaves []Leaf) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	next, changed, err := k.tree.without(leaves)
	if err != nil {
		return err
	}
	if !changed && counter <= k.counter {
		next.wipe()
		return nil
	}
	return k.replace(ctx, next, max(counter, k.counter), k.generations)
}

// SealUnder seals the file under the roots of these generations, which the machine has
// open, and no other.
func (k *Keys) SealUnder(ctx context.Context, generations ...uint32) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	if slices.Equal(generations, k.generations) {
		return nil
	}
	return k.write(ctx, k.tree, k.counter, generations)
}

// replace writes a tree and makes it that of the keys. The caller holds mu.
func (k *Keys) replace(ctx context.Context, next *tree, counter uint64, generations []uint32) error {
	if err := k.write(ctx, next, counter, generations); err != nil {
		next.wipe()
		return err
	}
	k.tree.wipe()
	k.tree = next
	return nil
}

// write replaces the file. The caller holds mu, or is alone.
func (k *Keys) write(ctx context.Context, t *tree, counter uint64, generations []uint32) error {
	if k.dir != "" {
		raw, err := seal(ctx, k.machine, Head{ID: k.id, Counter: counter, Generations: generations}, t)
		if err != nil {
			return err
		}
		failpoint.Hit("epochs-sealed")
		if err := errors.Join(k.tidy(), durable.WriteBytes(k.dir, File, raw)); err != nil {
			return fault.Wrap(fault.Unavailable, err, "the destruction keys cannot be written (%s): make room, or mend the disk; it is tried again",
				filepath.Join(k.dir, File))
		}
		failpoint.Hit("epochs-written")
	}
	k.counter, k.generations = counter, generations
	return nil
}

// tidy removes what a write that was cut short has left: it would outlive the keys in it.
func (k *Keys) tidy() error {
	left, err := filepath.Glob(filepath.Join(k.dir, File+".new-*"))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// Copy returns the file as it is now.
func (k *Keys) Copy() ([]byte, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return os.ReadFile(filepath.Join(k.dir, File))
}

// Close wipes the keys. The file stays.
func (k *Keys) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tree.wipe()
	k.tree, k.closed = &tree{}, true
}

// errClosed keeps keys that were wiped from being taken for keys that are destroyed, and the
// file from being written without them, by who goes on while the machine is being sealed.
var errClosed = fault.New(fault.Sealed, "the destruction keys are closed: the machine is sealed, or is being sealed; try again when it is open")

func (t *tree) wipe() {
	if t.seeds != nil {
		t.seeds.Wipe()
	}
}
