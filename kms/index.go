package kms

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/record"
)

// Names of entries in the key store.
const (
	keyPrefix  = "keys/"      // keys/0000000007: a Key
	namePrefix = "key-names/" // key-names/chat: its index, so that names are unique
)

func keyEntry(index uint32) string { return fmt.Sprintf("%s%010d", keyPrefix, index) }

// Key is a business key and its versions, oldest first. Keys are shared and
// never changed in place.
type Key struct {
	Index     uint32      `json:"index"`
	Name      string      `json:"name"`
	Algorithm alg.ID      `json:"algorithm"`
	For       hsm.Purpose `json:"purpose"`
	Created   time.Time   `json:"created"`
	Versions  []Version   `json:"versions"`
	Published bool        `json:"published,omitzero"` // public keys are in the key set that anybody may read
	Tokens    bool        `json:"tokens,omitzero"`    // made by the service to sign tokens; no app can use it

	// What few keys have is behind pointers: there may be a million keys in memory.
	Settings  *Settings  `json:"settings,omitzero"`
	Suspended *time.Time `json:"suspended,omitzero"`  // since when the whole key is refused
	DestroyAt *time.Time `json:"destroy_at,omitzero"` // when all of it is to be destroyed; it is refused meanwhile
	Hold      *Hold      `json:"hold,omitzero"`

	// Forgotten says that versions up to this number are destroyed and no longer
	// listed: their certificates tell of them.
	Forgotten uint32 `json:"forgotten,omitzero"`

	revision int64   // the store's, of the record that this is
	use      *keyUse // shared by all that this key was and will be
}

// Version is one version of a key.
type Version struct {
	Version uint32         `json:"version"`
	State   life.State     `json:"state"`
	KCV     string         `json:"kcv"`
	Wrapped hsm.WrappedKey `json:"wrapped,omitzero"` // empty once destroyed
	Created time.Time      `json:"created"`
	Marks   *Marks         `json:"marks,omitzero"`

	Public   []byte `json:"public,omitempty"`  // of a key that signs: the public key (hsm.PublicKey)
	Imported bool   `json:"imported,omitzero"` // made elsewhere
}

// Purpose returns what the key may be used for. Its wrapped keys are bound to it.
func (k *Key) Purpose() hsm.Purpose { return k.For }

// Exportable reports whether the key was made to be exported.
func (k *Key) Exportable() bool { return k.binding().Exportable }

// binding returns what the newest version that is not destroyed is bound to.
func (k *Key) binding() hsm.Binding {
	h, _ := k.Current().Wrapped.Header() // checked when it was taken in
	return h.Binding
}

// Marks are the times of a version's life after it was made. A version that was never
// pre-active and still seals has none.
type Marks struct {
	Activated   time.Time `json:"activated,omitzero"` // where that was later than Created
	Ended       time.Time `json:"ended,omitzero"`     // when it ceased to seal for good
	Compromised time.Time `json:"compromised,omitzero"`
	DestroyAt   time.Time `json:"destroy_at,omitzero"` // when it is to be destroyed; it is refused meanwhile
	Destroyed   time.Time `json:"destroyed,omitzero"`
}

// Newest returns the newest version: the one that seals, if any does.
func (k *Key) Newest() *Version { return &k.Versions[len(k.Versions)-1] }

// Version returns the version of that number, nil when there is none.
func (k *Key) Version(number uint32) *Version {
	at, found := slices.BinarySearchFunc(k.Versions, number, func(v Version, n uint32) int { return cmp.Compare(v.Version, n) })
	if !found {
		return nil
	}
	return &k.Versions[at]
}

// gone reports whether a version was destroyed.
func (k *Key) gone(number uint32) bool {
	v := k.Version(number)
	return v != nil && v.State == life.Destroyed || number > 0 && number <= k.Forgotten
}

// keyIndex is every key, by index and by name. It takes records in any order and
// keeps the newest: a change made here arrives again by the watch.
type keyIndex struct {
	mu      sync.RWMutex // guards all below
	byIndex map[uint32]*Key
	byName  map[string]*Key
	tended  map[uint32]*Key // those that the steward looks after
	owned   map[uint32]*Key // those that an app owns

	using sync.Mutex         // guards used
	used  map[uint32]*keyUse // of the keys that were used in this process
}

func newKeyIndex() *keyIndex {
	return &keyIndex{
		byIndex: map[uint32]*Key{}, byName: map[string]*Key{}, tended: map[uint32]*Key{}, owned: map[uint32]*Key{},
		used: map[uint32]*keyUse{},
	}
}

// apply takes a record in.
func (x *keyIndex) apply(r record.Record) error {
	k := &Key{revision: r.Entry}
	if err := r.Decode(k); err != nil {
		return err
	}
	if err := k.check(r.Name); err != nil {
		return err
	}
	x.put(k)
	return nil
}

func (x *keyIndex) put(k *Key) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if old := x.byIndex[k.Index]; old == nil {
		k.use = &keyUse{}
	} else if k.use = old.use; old.revision >= k.revision {
		return
	}
	x.byIndex[k.Index] = k
	x.byName[k.Name] = k
	file(x.tended, k, k.isTended())
	file(x.owned, k, k.owner() != "")
}

func file(into map[uint32]*Key, k *Key, belongs bool) {
	if belongs {
		into[k.Index] = k
	} else {
		delete(into, k.Index)
	}
}

// remove takes a record out that was deleted by the given revision.
func (x *keyIndex) remove(name string, revision int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for index, k := range x.byIndex {
		if keyEntry(index) == name && k.revision < revision {
			delete(x.byIndex, index)
			delete(x.byName, k.Name)
			delete(x.tended, index)
			delete(x.owned, index)
			return
		}
	}
}

func (x *keyIndex) get(index uint32) *Key {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.byIndex[index]
}

func (x *keyIndex) named(name string) *Key {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.byName[name]
}

func (x *keyIndex) len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.byIndex)
}

// list returns all keys in order of index.
func (x *keyIndex) list() []*Key {
	x.mu.RLock()
	defer x.mu.RUnlock()
	all := make([]*Key, 0, len(x.byIndex))
	for _, k := range x.byIndex {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *Key) int { return cmp.Compare(a.Index, b.Index) })
	return all
}
