// Package hsm says what a crypto machine is: the interfaces and the byte forms
// that its engines, cards, chips and ceremonies share.
//
// A machine holds the root key and nothing else. Business keys come to it
// wrapped by the root, with each call, and leave it never; so any open machine
// of a root can serve any call, and a machine in the process, one across a wire
// and a pool of several are the same interface, Machine, with one contract
// suite (hsm/hsmtest).
//
// The root key is dealt as Shamir shares to key cards (Card, Share), rebuilt by
// a ceremony at the machine's console (Console), and kept only as ciphertext
// under the machine's own token (Chip).
package hsm

import (
	"context"
	"time"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/harden"
)

// Machine does the work of the data plane. All methods may be called
// concurrently. A machine that is not open fails them with fault.Sealed.
type Machine interface {
	// GenerateKey draws a random business key and returns it wrapped and bound to
	// what b says.
	GenerateKey(ctx context.Context, b Binding) (GeneratedKey, error)

	// Do carries out the operations in place: each gets its own Output or its own
	// Err, and one that fails does not touch the others. The error that Do
	// returns is about the call as a whole (sealed, cancelled, unreachable); then
	// no operation has a result.
	Do(ctx context.Context, ops []Op) error

	// Status tells what state the machine is in. It does not fail because a
	// machine is sealed.
	Status(ctx context.Context) (Status, error)

	// Close releases the machine. A machine that was open is sealed by it.
	Close() error
}

// Engine is a Machine that can be given its root, at the end of a ceremony.
type Engine interface {
	Machine

	// Open runs the known-answer self-test, hands the root to the chip, derives
	// what the machine needs and opens it. The caller wipes root.
	Open(ctx context.Context, root Root) error

	// OpenNext gives an open machine the root of the next generation beside its own,
	// for the time of a rotation: it then opens what either has wrapped and sealed,
	// and Op.Generation chooses between them. A next root given before is forgotten.
	OpenNext(ctx context.Context, root Root) error

	// Promote makes the next root the machine's own and forgets the one before.
	Promote(ctx context.Context) error

	// DropNext forgets the next root. Without one it does nothing.
	DropNext(ctx context.Context) error

	// SealedRoot returns the root of an open machine as the chip encrypts it (Chip.Open).
	SealedRoot(ctx context.Context) ([]byte, error)

	// Seal forgets everything that Open made. Calls under way finish or fail with
	// fault.Sealed.
	Seal(ctx context.Context) error
}

// Kind is what an operation does.
type Kind uint8

// The kinds of operations.
const (
	Encrypt     Kind = iota + 1 // Input plaintext, Output ciphertext
	Decrypt                     // Input ciphertext, Output plaintext
	Reencrypt                   // Input ciphertext under Key, Output ciphertext under To
	SealRecord                  // Input a record of the key store, Output sealed
	OpenRecord                  // the reverse
	Rewrap                      // Key a wrapped key, Output the same key wrapped under Generation
	Mac                         // Input a message, Output its code under Key
	VerifyMac                   // Input a message, Signature its code; fault.SignatureInvalid when it is not
	Sign                        // Input a message, Output its signature by Key
	Verify                      // Input a message, Signature its signature; fault.SignatureInvalid when it is not
	PublicKey                   // Output the public key of Key
	DataKey                     // Output Size random bytes, sealed under Key as Encrypt seals; Plain the same in the clear
	Random                      // Output Size random bytes
	SealSegment                 // Input a segment's plaintext, Output the segment; where Segment has no header, a new one before it
	OpenSegment                 // Input a segment, Output its plaintext
	// Forget has the machine forget whatever it keeps of Key, because the key is
	// destroyed. A machine made of several has all of them do it.
	Forget
	// Export has Key, which must have been made exportable, wrapped for an RSA public key
	// (hsm/keyexport): Input the DER of its SubjectPublicKeyInfo, Output the blob.
	Export
)

// Limits of Op.Size.
const (
	MaxRandom  = 1024
	MaxDataKey = 64
)

// Op is one operation of a call to Machine.Do. Ciphertexts are in binary form
// (docs/format.md). Business keys are given wrapped; those of a ciphertext must
// be the one its header names.
type Op struct {
	Kind      Kind
	Key       WrappedKey // Encrypt: the key. Decrypt, Reencrypt: the key that opens Input
	To        WrappedKey // Reencrypt: the key that seals Output
	Algorithm alg.ID     // Encrypt, Reencrypt, a stream's first SealSegment: the suite; 0 is the sealing key's own
	Context   []byte     // canonical context of Input (Decrypt, Reencrypt, OpenSegment) or Output (Encrypt, SealSegment)
	ToContext []byte     // Reencrypt: canonical context of Output
	Record    RecordID   // SealRecord, OpenRecord
	Segment   Segment    // SealSegment, OpenSegment
	// Generation is that of the root which SealRecord and Rewrap seal under; 0 is the
	// machine's own. What is opened says itself which root it needs.
	Generation uint32
	Input      []byte
	Signature  []byte // VerifyMac: the code. Verify: the signature
	Size       int    // DataKey, Random
	Reveal     bool   // DataKey: give Plain too

	Plain  []byte // DataKey: the key in the clear, when Reveal asks for it
	Output []byte // the result, appended to what the caller left here
	Err    error
}

// Segment says where a segment of a stream belongs (docs/format.md, Stream).
//
// The machine draws the header, salt and nonce prefix with it, when it seals the
// first segment; its caller gives it back with each that follows, and never has two
// plaintexts sealed under one counter. A call that failed may be repeated: the same
// input gives the same segment.
type Segment struct {
	Header  []byte // of the stream; none when its first segment is sealed
	Counter uint32 // from 0
	Last    bool   // the stream ends with it
}

// RecordID names a sealed record of the key store. It is authenticated with the
// record, so that a record does not open under another name, nor as another
// revision of its own.
type RecordID struct {
	Name     string
	Revision uint64
}

// Importer is a Machine that takes in business keys which were made elsewhere. Both
// halves of an import are the same machine's: its one-time key never leaves it.
type Importer interface {
	// BeginImport makes a one-time key for one import, valid for some minutes.
	BeginImport(ctx context.Context) (ImportKey, error)

	// FinishImport opens what was wrapped for the import of that id, and wraps the key
	// in it under the root, bound to b. The one-time key is gone afterwards, whatever
	// the result.
	FinishImport(ctx context.Context, id ID, blob []byte, b Binding) (GeneratedKey, error)
}

// ImportKey is the public part of a one-time import key.
type ImportKey struct {
	ID      ID
	Public  []byte // DER of a SubjectPublicKeyInfo, RSA
	Expires time.Time
}

// GeneratedKey is a new business key.
type GeneratedKey struct {
	Wrapped WrappedKey
	KCV     string // key check value, with its method: cmac-aes:763cbc
}

// State is a machine's state.
type State string

// The states of a machine.
const (
	Blank      State = "blank"      // never initialised: there is no root key
	Closed     State = "sealed"     // initialised, no cards given
	Collecting State = "collecting" // some cards given, not enough
	Open       State = "open"       // serving
)

// Status is what a machine tells of itself. Nothing in it is secret.
type Status struct {
	State      State  `json:"state"`
	Have       int    `json:"have"` // cards given in this ceremony
	Need       int    `json:"need"` // cards needed; 0 when blank
	Shares     int    `json:"shares,omitzero"`
	KCV        string `json:"kcv"`
	Generation uint32 `json:"generation,omitzero"`
	RootID     ID     `json:"root_id,omitzero"`
	SplitID    ID     `json:"split_id,omitzero"`
	Region     string `json:"region,omitempty"`
	MachineID  ID     `json:"machine_id,omitzero"`
	Engine     string `json:"engine,omitempty"`
	Chip       string `json:"chip,omitempty"`
	Memory     string `json:"memory,omitempty"` // where keys are: memfd_secret or mlock

	// What the console tells besides the machine.
	Identity string              `json:"fingerprint,omitempty"` // of the key that signs reports
	Warm     bool                `json:"warm,omitzero"`         // it starts without cards
	Ceremony *Progress           `json:"ceremony,omitempty"`    // under way
	Cards    []CardRecord        `json:"cards,omitempty"`       // which card has which share
	Process  []harden.Protection `json:"process,omitempty"`
}
