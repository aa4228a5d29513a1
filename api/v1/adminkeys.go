package v1

import "time"

// NewKey is the body of POST /admin/v1/keys.
type NewKey struct {
	Index       uint32 `json:"index,omitzero"` // 0: the lowest that is free
	Name        string `json:"name,omitempty"`
	Algorithm   string `json:"algorithm,omitempty"`
	PreActive   bool   `json:"pre_active,omitzero"` // it seals only after it is activated
	Purpose     string `json:"purpose,omitempty"`   // seal when left out
	Exportable  bool   `json:"exportable,omitzero"`
	Publish     bool   `json:"publish,omitzero"` // of a key that signs: in the key set that anybody may read
	KeySettings `json:",inline"`
}

// NewKeys is the body of POST /admin/v1/key-batches: Count keys as NewKey says, with the
// indexes from Index on, named Name (key when left out), a dash and the index.
type NewKeys struct {
	Count  int `json:"count"` // at most 1000
	NewKey `json:",inline"`
}

// NewKeysMade is the answer.
type NewKeysMade struct {
	From uint32 `json:"from"`
	To   uint32 `json:"to"`
	Made int    `json:"made"`
}

// KeySettings is the body of PATCH /admin/v1/keys/{key}: each field that is given is one
// change, and "0" or an empty text ends a setting.
type KeySettings struct {
	Description    *string           `json:"description,omitzero"`
	Labels         map[string]string `json:"labels,omitempty"` // an empty value takes a label away
	Owner          *string           `json:"owner,omitzero"`   // an app
	Rotate         *string           `json:"rotate,omitzero"`  // 24h, 7d
	RotateAfter    *uint64           `json:"rotate_after,omitzero"`
	Retain         *string           `json:"retain,omitzero"`
	RequireContext *string           `json:"require_context,omitzero"` // app,chat_type:enum(dm|group),revision:int
	StrictContext  *bool             `json:"strict_context,omitzero"`
}

// KeyOrder is the body of POST /admin/v1/keys/{key}/VERB.
type KeyOrder struct {
	Version uint32 `json:"version,omitzero"` // 0: the whole key
	Days    int    `json:"days,omitzero"`    // of schedule-destroy; 0: 30
	Why     string `json:"why,omitempty"`    // of hold

	// EvenIfUsed, of schedule-destroy, is why it shall be destroyed though a census finds
	// it in use.
	EvenIfUsed string `json:"even_if_used,omitempty"`
}

// AdminKey is a key as administrators see it: wrapped, never in the clear. Version, State,
// KCV and Wrapped are those of the newest version that is not destroyed.
type AdminKey struct {
	Index     uint32            `json:"index"`
	Name      string            `json:"name"`
	Version   uint32            `json:"version"`
	Algorithm string            `json:"algorithm"`
	State     string            `json:"state"`
	KCV       string            `json:"kcv"`
	Wrapped   string            `json:"wrapped"` // empty once destroyed
	Created   time.Time         `json:"created"`
	Rotated   time.Time         `json:"rotated,omitzero"` // when the newest version was made
	LastUsed  time.Time         `json:"last_used,omitzero"`
	Versions  []AdminKeyVersion `json:"versions,omitempty"`
	Stale     bool              `json:"stale,omitzero"` // the key store is out of reach: this is what the node knows

	Purpose    string      `json:"purpose"`
	Exportable bool        `json:"exportable,omitzero"`
	Published  bool        `json:"published,omitzero"`
	Public     []PublicKey `json:"public_keys,omitempty"` // of a key that signs

	Description    string            `json:"description,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	Owner          string            `json:"owner,omitempty"`
	Rotate         string            `json:"rotate,omitempty"`
	RotateAfter    uint64            `json:"rotate_after,omitzero"`
	Retain         string            `json:"retain,omitempty"`
	RequireContext string            `json:"require_context,omitempty"`
	StrictContext  bool              `json:"strict_context,omitzero"`

	Rotates   time.Time `json:"rotates,omitzero"`    // when the next rotation is due
	DestroyAt time.Time `json:"destroy_at,omitzero"` // when the whole key is to be destroyed
	Hold      *KeyHold  `json:"hold,omitzero"`       // while it lasts
	Opens     []Span    `json:"opens,omitempty"`     // messages sealed when still open
}

// KeyPage is a page of keys, in order of index.
type KeyPage struct {
	Items []AdminKey `json:"items"`
	Next  uint32     `json:"next,omitzero"` // there are more, from this index on: ?from=
}

// KeyHold is a legal hold.
type KeyHold struct {
	Since time.Time `json:"since"`
	By    string    `json:"by"`
	Why   string    `json:"why"`
}

// Span is a time in which messages were sealed that still open. Until is zero while it
// goes on.
type Span struct {
	From  time.Time `json:"from"`
	Until time.Time `json:"until,omitzero"`
}

// AdminKeyVersion is one version of a key.
type AdminKeyVersion struct {
	Version     uint32    `json:"version"`
	State       string    `json:"state"`
	KCV         string    `json:"kcv"`
	Wrapped     string    `json:"wrapped"` // empty once destroyed
	Created     time.Time `json:"created"`
	SealedFrom  time.Time `json:"sealed_from,omitzero"`
	SealedUntil time.Time `json:"sealed_until,omitzero"`
	Compromised time.Time `json:"compromised,omitzero"`
	DestroyAt   time.Time `json:"destroy_at,omitzero"` // ordered, or by retention
	Destroyed   time.Time `json:"destroyed,omitzero"`
	Seals       uint64    `json:"seals"`
	Opens       uint64    `json:"opens"`
	LastUsed    time.Time `json:"last_used,omitzero"`
	Imported    bool      `json:"imported,omitzero"`
	Exported    time.Time `json:"exported,omitzero"` // when it was last wrapped for somebody else
}

// ExportKey is the body of POST /admin/v1/keys/{key}/export.
type ExportKey struct {
	Version uint32 `json:"version,omitzero"` // 0: the newest that is not destroyed
	ToKey   string `json:"to_key"`           // PEM of the receiver's public key (SubjectPublicKeyInfo), RSA of 3072 bits or more

	// Confirm is the version's key check value, which is asked for where no other person
	// approves the export.
	Confirm string `json:"confirm,omitempty"`
}

// ExportedKey is the answer: a version of a business key, wrapped as PKCS#11's
// CKM_RSA_AES_KEY_WRAP does.
type ExportedKey struct {
	Index     uint32 `json:"index"`
	Version   uint32 `json:"version"`
	Algorithm string `json:"algorithm"`
	Purpose   string `json:"purpose"`
	KCV       string `json:"kcv"`
	Receiver  string `json:"receiver"` // SHA-256 of the public key it is wrapped for
	Exported  []byte `json:"exported"`
}

// Reservation is a range of key indexes that is kept for one app, and the body of POST
// /admin/v1/key-ranges; with Remove the range is given up.
type Reservation struct {
	Range  string `json:"range"` // 100-199
	App    string `json:"app,omitempty"`
	Remove bool   `json:"remove,omitzero"`
}
