package kms

import (
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/record"
)

// keyIndex is every key, by index and by name. It takes records in any order and
// keeps the newest: a change made here arrives again by the watch.
//
// There may be a million keys, of which few are in use at a time. So all are kept as
// their records say them, in a few large blocks, and maps without pointers lead there: the
// garbage collector, which walks every pointer again and again, sees next to nothing of
// them. Those in use are kept decoded besides.
type keyIndex struct {
	seed   maphash.Seed
	unlock func(...*Key) error // has a record's locked keys opened, when it is decoded for use

	mu     sync.RWMutex // guards all below
	packed arena
	at     map[uint32]place
	names  map[uint64]uint32 // by the hash of the name
	twins  map[string]uint32 // names whose hash another has
	hot    map[uint32]*Key   // decoded; at most maxHot
	used   map[uint32]*keyUse

	// What is asked of all keys, for those of which there is something to say.
	due       map[uint32]int64  // Unix time in nanoseconds of what the steward has to do next
	owned     map[uint32]string // the app that owns it
	owners    map[string]string // each owner once, for owned to share
	published map[uint32]bool
	full      uint32 // there is a key at every index up to this one
}

// maxHot is how many keys are kept decoded: twice as many as a machine keeps unwrapped, some
// 40 MB.
const maxHot = 32 << 10

// place is where a key's record is.
type place struct {
	ref
	revision int64 // the store's
}

func newKeyIndex(unlock func(...*Key) error) *keyIndex {
	return &keyIndex{
		seed: maphash.MakeSeed(), unlock: unlock, at: map[uint32]place{}, names: map[uint64]uint32{}, twins: map[string]uint32{}, hot: map[uint32]*Key{},
		used: map[uint32]*keyUse{}, due: map[uint32]int64{}, owned: map[uint32]string{}, owners: map[string]string{}, published: map[uint32]bool{},
	}
}

// put takes a key in that was changed here.
func (x *keyIndex) put(k *Key) error {
	content, err := record.JSON(k)
	if err == nil {
		x.store(k, content)
	}
	return err
}

// store takes a key in with its record. While its keys are locked it is not kept decoded.
func (x *keyIndex) store(k *Key, content []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	k.use = x.used[k.Index]
	old, known := x.at[k.Index]
	if known && old.revision >= k.revision {
		return
	}
	if known {
		x.packed.drop(old.ref)
	}
	x.at[k.Index] = place{x.packed.add(content), k.revision}
	x.tidy()
	if !known {
		x.name(k)
	}
	if k.isLocked() {
		delete(x.hot, k.Index)
	} else if x.hot[k.Index] != nil {
		x.hot[k.Index] = k
	}
	note(x.due, k.Index, k.nextDue(), 0)
	note(x.owned, k.Index, x.owner(k), "")
	note(x.published, k.Index, k.Published, false)
}

// note notes what there is to say of a key.
func note[V comparable](of map[uint32]V, index uint32, what, nothing V) {
	if what == nothing {
		delete(of, index)
	} else {
		of[index] = what
	}
}

func (x *keyIndex) owner(k *Key) string {
	name := k.owner()
	if _, ok := x.owners[name]; !ok {
		x.owners[strings.Clone(name)] = strings.Clone(name)
	}
	return x.owners[name]
}

// name has the key found by its name, which never changes.
func (x *keyIndex) name(k *Key) {
	h := maphash.String(x.seed, k.Name)
	if other, taken := x.names[h]; taken && other != k.Index {
		x.twins[strings.Clone(k.Name)] = k.Index
		return
	}
	x.names[h] = k.Index
}

// tidy gives back the room of records that were replaced.
func (x *keyIndex) tidy() {
	if !x.packed.wasteful() {
		return
	}
	var fresh arena
	for index, at := range x.at {
		x.at[index] = place{fresh.add(x.packed.get(at.ref)), at.revision}
	}
	x.packed = fresh
}

// remove takes a record out that was deleted by the given revision.
func (x *keyIndex) remove(name string, revision int64) {
	number, err := strconv.ParseUint(strings.TrimPrefix(name, keyPrefix), 10, 32)
	index := uint32(number)
	k := x.get(index)
	if err != nil || k == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	at, known := x.at[index]
	if !known || at.revision >= revision {
		return
	}
	x.packed.drop(at.ref)
	delete(x.at, index)
	if h := maphash.String(x.seed, k.Name); x.names[h] == index {
		delete(x.names, h)
	}
	delete(x.twins, k.Name)
	delete(x.hot, index)
	delete(x.due, index)
	delete(x.owned, index)
	delete(x.published, index)
	x.full = min(x.full, index-1)
}

// get returns the key of an index, nil when there is none.
func (x *keyIndex) get(index uint32) *Key {
	x.mu.RLock()
	k := x.hot[index]
	x.mu.RUnlock()
	if k != nil {
		return k
	}
	return x.warm(index)
}

// warm decodes a key and keeps it so.
func (x *keyIndex) warm(index uint32) *Key {
	for {
		x.mu.RLock()
		at, known := x.at[index]
		content := x.packed.get(at.ref) // which is never changed
		x.mu.RUnlock()
		if !known {
			return nil
		}
		k := x.unpack(content, at.revision)
		if k.isLocked() {
			return k
		}
		x.mu.Lock()
		if x.at[index].revision == at.revision {
			defer x.mu.Unlock()
			return x.heat(k)
		}
		x.mu.Unlock()
	}
}

// heat keeps a key decoded, in the place of any other where there are enough.
func (x *keyIndex) heat(k *Key) *Key {
	if same := x.hot[k.Index]; same != nil {
		return same
	}
	if len(x.hot) >= maxHot {
		for other := range x.hot {
			delete(x.hot, other)
			break
		}
	}
	k.use = x.useFor(k.Index)
	x.hot[k.Index] = k
	return k
}

// decode decodes a record that was decoded before, when it was taken in.
func decode(content []byte, revision int64) *Key {
	k := &Key{revision: revision}
	if err := (record.Record{Content: content}).Decode(k); err != nil {
		panic(fmt.Sprintf("kms: the index of keys is damaged: %v", err))
	}
	return k
}

// open has keys unlocked. They stay locked where that is too late, because the machine is
// being sealed.
func (x *keyIndex) open(keys ...*Key) {
	if err := x.unlock(keys...); err != nil {
		slog.Warn("keys were not unlocked", "keys", len(keys), "error", err)
	}
}

// unpack is decode, of a key that is unlocked.
func (x *keyIndex) unpack(content []byte, revision int64) *Key {
	k := decode(content, revision)
	x.open(k)
	return k
}

// peek returns the key of an index without keeping it decoded, nil when there is none.
func (x *keyIndex) peek(index uint32) *Key {
	k := x.locked(index)
	if k != nil {
		x.open(k)
	}
	return k
}

// locked is peek, of a key that may still be locked.
func (x *keyIndex) locked(index uint32) *Key {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if k := x.hot[index]; k != nil {
		return k
	}
	at, known := x.at[index]
	if !known {
		return nil
	}
	k := decode(x.packed.get(at.ref), at.revision)
	k.use = x.used[index]
	return k
}

func (x *keyIndex) named(name string) *Key {
	x.mu.RLock()
	index, found := x.names[maphash.String(x.seed, name)]
	twin, isTwin := x.twins[name]
	x.mu.RUnlock()
	if isTwin {
		return x.get(twin)
	}
	if found {
		if k := x.get(index); k != nil && k.Name == name {
			return k
		}
	}
	return nil
}

// find returns the key that a reference names, nil when there is none.
func (x *keyIndex) find(ref string) *Key {
	if index, ok := parseIndex(ref); ok {
		return x.get(index)
	}
	return x.named(ref)
}

func (x *keyIndex) has(index uint32) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, known := x.at[index]
	return known
}

func (x *keyIndex) len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.at)
}

// indexes returns the indexes of all keys from one on, in order.
func (x *keyIndex) indexes(from uint32) []uint32 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	all := make([]uint32, 0, len(x.at))
	for index := range x.at {
		if index >= from {
			all = append(all, index)
		}
	}
	slices.Sort(all)
	return all
}

// keysOf returns the keys of indexes that are still there. They are unlocked together: they
// share most of the way to their destruction keys.
func (x *keyIndex) keysOf(indexes []uint32) []*Key {
	all := make([]*Key, 0, len(indexes))
	for batch := range slices.Chunk(indexes, unlockBatch) {
		start := len(all)
		for _, index := range batch {
			if k := x.locked(index); k != nil {
				all = append(all, k)
			}
		}
		x.open(all[start:]...)
	}
	return all
}

// unlockBatch is how many keys are unlocked together.
const unlockBatch = 500

// toPublish returns the keys that are in the key set, in order of index.
func (x *keyIndex) toPublish() []*Key {
	x.mu.RLock()
	all := make([]uint32, 0, len(x.published))
	for index := range x.published {
		all = append(all, index)
	}
	x.mu.RUnlock()
	slices.Sort(all)
	return x.keysOf(all)
}

// dueAt returns the keys of which something is due, in order of index.
func (x *keyIndex) dueAt(now int64) []*Key {
	x.mu.RLock()
	var all []uint32
	for index, at := range x.due {
		if at <= now {
			all = append(all, index)
		}
	}
	x.mu.RUnlock()
	slices.Sort(all)
	return x.keysOf(all)
}

// free returns the lowest index that no key has, of those that next lets through; 0 when
// there is none.
func (x *keyIndex) free(next func(from uint32) uint32) uint32 {
	x.mu.Lock()
	defer x.mu.Unlock()
	for has := true; has && x.full < 1<<32-1; {
		if _, has = x.at[x.full+1]; has {
			x.full++
		}
	}
	index := next(x.full + 1)
	for index != 0 {
		if _, taken := x.at[index]; !taken {
			break
		}
		index = next(index + 1)
	}
	return index
}

// foreign returns a key in the range that is not the app's.
func (x *keyIndex) foreign(r Reservation) *Key {
	x.mu.RLock()
	found := uint32(0)
	for index := range x.at {
		if r.From <= index && index <= r.To && x.owned[index] != r.App && (found == 0 || index < found) {
			found = index
		}
	}
	x.mu.RUnlock()
	if found == 0 {
		return nil
	}
	return x.peek(found)
}

// noKey is what is said of a key that there is not.
func noKey(ref string) error {
	return fault.New(fault.KeyNotFound, "there is no key %q; trikey key list shows those there are", ref)
}
