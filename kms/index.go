package kms

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/kms/epochs"
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

	// What few keys have is behind pointers.
	Settings  *Settings  `json:"settings,omitzero"`
	Suspended *time.Time `json:"suspended,omitzero"`  // since when the whole key is refused
	DestroyAt *time.Time `json:"destroy_at,omitzero"` // when all of it is to be destroyed; it is refused meanwhile
	Hold      *Hold      `json:"hold,omitzero"`

	// EvenIfUsed is why all of the key is to be destroyed at DestroyAt though a census
	// finds it in use.
	EvenIfUsed string `json:"even_if_used,omitzero"`

	// Forgotten says that versions up to this number are destroyed and no longer
	// listed: their certificates tell of them.
	Forgotten uint32 `json:"forgotten,omitzero"`

	revision int64   // the store's, of the record that this is
	use      *keyUse // shared by all that this key was and will be; nil where nobody has used it
}

// Version is one version of a key.
type Version struct {
	Version uint32         `json:"version"`
	State   life.State     `json:"state"`
	KCV     string         `json:"kcv"`
	Wrapped hsm.WrappedKey `json:"wrapped,omitzero"` // empty once destroyed, and in records
	Locked  epochs.Locked  `json:"locked,omitzero"`  // Wrapped as records have it: under the destruction key
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
	Exported    time.Time `json:"exported,omitzero"` // when it was last about to be wrapped for somebody else

	EvenIfUsed string `json:"even_if_used,omitzero"` // why, with DestroyAt: Key.EvenIfUsed
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

// isLocked reports whether wrapped keys of it are locked: then it is of no use yet.
func (k *Key) isLocked() bool {
	return slices.ContainsFunc(k.Versions, func(v Version) bool { return v.Locked != "" })
}

// key returns the wrapped key, for the machine.
func (v *Version) key() (hsm.WrappedKey, error) {
	if v.Locked != "" {
		return "", errSealed // it could not be unlocked any more
	}
	return v.Wrapped, nil
}

// parseKey reads a record, whose keys are still locked.
func parseKey(r record.Record) (*Key, error) {
	k := &Key{revision: r.Entry}
	if err := r.Decode(k); err != nil {
		return nil, err
	}
	return k, k.check(r.Name)
}
