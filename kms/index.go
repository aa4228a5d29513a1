package kms

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/kms/record"
)

// Names of entries in the key store.
const (
	keyPrefix  = "keys/"      // keys/0000000007: a Key
	namePrefix = "key-names/" // key-names/chat: its index, so that names are unique
)

func keyEntry(index uint32) string { return fmt.Sprintf("%s%010d", keyPrefix, index) }

// State is the state of a key version.
type State string

// The states of a key version (NIST SP 800-57 part 1, section 7).
const (
	Active State = "active"
)

// Key is a business key and its versions, oldest first. Keys are shared and
// never changed in place.
type Key struct {
	Index     uint32    `json:"index"`
	Name      string    `json:"name"`
	Algorithm alg.ID    `json:"algorithm"`
	Created   time.Time `json:"created"`
	Versions  []Version `json:"versions"`
	Published bool      `json:"published,omitzero"` // public keys are in the key set that anybody may read

	revision int64 // the store's, of the record that this is
}

// Version is one version of a key.
type Version struct {
	Version uint32         `json:"version"`
	State   State          `json:"state"`
	KCV     string         `json:"kcv"`
	Wrapped hsm.WrappedKey `json:"wrapped"`
	Created time.Time      `json:"created"`

	Public   []byte `json:"public,omitempty"`  // of a key that signs: the public key (hsm.PublicKey)
	Imported bool   `json:"imported,omitzero"` // made elsewhere
}

// Purpose returns what the key may be used for. The wrapped key says so; the index has no
// key whose wrapped keys are not ones.
func (k *Key) Purpose() hsm.Purpose { return k.binding().Purpose }

// Exportable reports whether the key was made to be exported.
func (k *Key) Exportable() bool { return k.binding().Exportable }

// binding returns what the newest version is bound to.
func (k *Key) binding() hsm.Binding {
	h, _ := k.Newest().Wrapped.Header() // checked when it was taken in
	return h.Binding
}

// Newest returns the version that encrypts.
func (k *Key) Newest() *Version { return &k.Versions[len(k.Versions)-1] }

// Version returns the version of that number, nil when there is none.
func (k *Key) Version(number uint32) *Version {
	at, found := slices.BinarySearchFunc(k.Versions, number, func(v Version, n uint32) int { return cmp.Compare(v.Version, n) })
	if !found {
		return nil
	}
	return &k.Versions[at]
}

// keyIndex is every key, by index and by name. It takes records in any order and
// keeps the newest: a change made here arrives again by the watch.
type keyIndex struct {
	mu      sync.RWMutex // guards all below
	byIndex map[uint32]*Key
	byName  map[string]*Key
}

func newKeyIndex() *keyIndex {
	return &keyIndex{byIndex: map[uint32]*Key{}, byName: map[string]*Key{}}
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
	if old := x.byIndex[k.Index]; old != nil && old.revision >= k.revision {
		return
	}
	x.byIndex[k.Index] = k
	x.byName[k.Name] = k
}

// remove takes a record out that was deleted by the given revision.
func (x *keyIndex) remove(name string, revision int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for index, k := range x.byIndex {
		if keyEntry(index) == name && k.revision < revision {
			delete(x.byIndex, index)
			delete(x.byName, k.Name)
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
