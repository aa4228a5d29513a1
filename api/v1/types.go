// Package v1 is the wire of Trikey's data plane, version 1: the JSON bodies of
// its requests and answers. The SDK and the service share it; other clients find
// the same shapes in docs/api.md.
//
// Binary fields are standard base64. A ciphertext is its text form, tk1. and
// base64url (docs/format.md). Errors are fault.Problem.
package v1

import (
	"strconv"

	"github.com/trikey/trikey/internal/fault"
)

// Limits of requests.
const (
	MaxBody      = 8 << 20 // bytes of a JSON body
	MaxPlaintext = 8 << 20 // bytes of one plaintext, raw
	MaxItems     = 1000    // items of a batch
)

// HeaderReceipt is in the answer to every change over the admin API: base64 of the proof
// that the change is recorded in the audit log (c2sp.org/tlog-proof).
const HeaderReceipt = "Trikey-Audit-Receipt"

// Headers of calls with raw bodies (application/octet-stream).
const (
	HeaderContext   = "Trikey-Context"   // base64 of the JSON object, request
	HeaderAlgorithm = "Trikey-Algorithm" // request and answer
	HeaderKey       = "Trikey-Key"       // answer: index
	HeaderVersion   = "Trikey-Version"   // answer: key version
	OctetStream     = "application/octet-stream"
)

// Headers of streams, POST /v1/stream/{key}/encrypt and decrypt, beside those above.
const (
	// HeaderSegments is the range of segments that the body of a decryption has:
	// FIRST- or FIRST-LAST, counted from 0. The stream's header is then not in the
	// body but in HeaderStream, in base64.
	HeaderSegments = "Trikey-Segments"
	HeaderStream   = "Trikey-Stream-Header"
	// HeaderResult, with the value ResultTrailer, asks for the outcome in a trailer of
	// the same name: ResultOK, or the code of an error. Without it, an answer that has
	// begun and cannot be completed is broken off.
	HeaderResult  = "Trikey-Result"
	ResultTrailer = "trailer"
	ResultOK      = "ok"
)

// KeyRef names a key: its index in decimal, or its name. In JSON it may be a
// number or a string.
type KeyRef string

// Key returns a reference to the key of that index.
func Key(index uint32) KeyRef { return KeyRef(strconv.FormatUint(uint64(index), 10)) }

// Index returns the index, and whether the reference is one.
func (k KeyRef) Index() (uint32, bool) {
	n, err := strconv.ParseUint(string(k), 10, 32)
	return uint32(n), err == nil
}

// UnmarshalJSON reads a number or a string. No name has a character that JSON would
// write in a way that Go does not read.
func (k *KeyRef) UnmarshalJSON(raw []byte) error {
	text := string(raw)
	if len(raw) >= 2 && raw[0] == '"' {
		unquoted, err := strconv.Unquote(text)
		if err != nil {
			return fault.New(fault.BadRequest, "not a key index or name")
		}
		*k = KeyRef(unquoted)
		return nil
	}
	if _, ok := KeyRef(text).Index(); !ok {
		return fault.New(fault.BadRequest, "not a key index (0 to 4294967295) or name")
	}
	*k = KeyRef(text)
	return nil
}

// Context is what a ciphertext is bound to: it opens only with the same.
type Context map[string]string

// EncryptRequest is the body of POST /v1/keys/{key}/encrypt, and with Key and
// Reference an item of POST /v1/batch/encrypt.
type EncryptRequest struct {
	Plaintext []byte  `json:"plaintext"` // required; may be empty
	Context   Context `json:"context,omitempty"`
	Algorithm string  `json:"algorithm,omitempty"`
}

// DecryptRequest is the body of POST /v1/keys/{key}/decrypt.
type DecryptRequest struct {
	Ciphertext string  `json:"ciphertext"`
	Context    Context `json:"context,omitempty"`
}

// ReencryptRequest is the body of POST /v1/reencrypt.
type ReencryptRequest struct {
	Ciphertext string  `json:"ciphertext"`
	Context    Context `json:"context,omitempty"`
	To         *Target `json:"to,omitempty"`
}

// Target is what a re-encrypted ciphertext shall be. What it leaves out stays as it
// was; the version is the newest of the key in any case.
type Target struct {
	Key       KeyRef   `json:"key,omitempty"`
	Context   *Context `json:"context,omitzero"`
	Algorithm string   `json:"algorithm,omitempty"`
}

// Sealed is the answer of encrypt and reencrypt.
type Sealed struct {
	Ciphertext string `json:"ciphertext"`
	Key        uint32 `json:"key"`
	Version    uint32 `json:"version"`
	Algorithm  string `json:"algorithm"`
}

// Opened is the answer of decrypt.
type Opened struct {
	Plaintext []byte `json:"plaintext"`
	Key       uint32 `json:"key"`
	Version   uint32 `json:"version"`
}

// EncryptItem is an item of POST /v1/batch/encrypt.
type EncryptItem struct {
	Key       KeyRef  `json:"key"`
	Plaintext []byte  `json:"plaintext"`
	Context   Context `json:"context,omitempty"`
	Algorithm string  `json:"algorithm,omitempty"`
	Reference string  `json:"reference,omitempty"` // given back with the result
}

// DecryptItem is an item of POST /v1/batch/decrypt.
type DecryptItem struct {
	Ciphertext string  `json:"ciphertext"`
	Context    Context `json:"context,omitempty"`
	Reference  string  `json:"reference,omitempty"`
}

// ReencryptItem is an item of POST /v1/batch/reencrypt.
type ReencryptItem struct {
	Ciphertext string  `json:"ciphertext"`
	Context    Context `json:"context,omitempty"`
	To         *Target `json:"to,omitempty"`
	Reference  string  `json:"reference,omitempty"`
}

// Batch is the body of a batch call and, with results for items, its answer.
type Batch[T any] struct {
	Items []T `json:"items"`
}

// ItemError is what went wrong with one item of a batch.
type ItemError struct {
	Code   fault.Code `json:"code"`
	Detail string     `json:"detail,omitempty"`
}

// Err returns the item's error as a fault; nil for nil.
func (e *ItemError) Err() error {
	if e == nil {
		return nil
	}
	return fault.Problem{Code: e.Code, Title: e.Code.Title(), Detail: e.Detail}.Err()
}

// SealedItem is a result of batch/encrypt and batch/reencrypt: Ciphertext and the
// fields after it, or Error.
type SealedItem struct {
	Ciphertext string     `json:"ciphertext,omitempty"`
	Key        uint32     `json:"key,omitzero"`
	Version    uint32     `json:"version,omitzero"`
	Algorithm  string     `json:"algorithm,omitempty"`
	Error      *ItemError `json:"error,omitempty"`
	Reference  string     `json:"reference,omitempty"`
}

// OpenedItem is a result of batch/decrypt: Plaintext, which may be empty but is
// there, and the fields after it, or Error.
type OpenedItem struct {
	Plaintext *[]byte    `json:"plaintext,omitzero"`
	Key       uint32     `json:"key,omitzero"`
	Version   uint32     `json:"version,omitzero"`
	Error     *ItemError `json:"error,omitempty"`
	Reference string     `json:"reference,omitempty"`
}

// InspectRequest is the body of POST /v1/ciphertext/inspect. A stream has no text
// form: its beginning, at least its header, is given in standard base64.
type InspectRequest struct {
	Ciphertext string `json:"ciphertext"`
}

// Inspection is the public part of a ciphertext, or of a stream: then the nonce is
// the part that its segments share, and sizes are those of what was given. Nothing in
// it is verified.
type Inspection struct {
	Format     int    `json:"format"`
	Algorithm  string `json:"algorithm"`
	Suite      int    `json:"suite"`
	Key        uint32 `json:"key"`
	Version    uint32 `json:"version"`
	Salt       string `json:"salt"`              // hex
	Nonce      string `json:"nonce"`             // hex
	Plaintext  int    `json:"plaintext_bytes"`   // of a suite that pads: the most it can be
	Ciphertext int    `json:"ciphertext_bytes"`  // binary form
	Segments   int    `json:"segments,omitzero"` // of a stream
}

// KeyInfo is the answer of GET /v1/keys/{key}: what an app with a grant for the
// key may see.
type KeyInfo struct {
	Index     uint32   `json:"index"`
	Name      string   `json:"name"`
	Version   uint32   `json:"version"`  // the one that encrypts
	Versions  []uint32 `json:"versions"` // those that are not destroyed
	Algorithm string   `json:"algorithm"`
	Purpose   string   `json:"purpose"`
	State     string   `json:"state"`

	RequireContext string `json:"require_context,omitempty"` // app,chat_type:enum(dm|group)
	StrictContext  bool   `json:"strict_context,omitzero"`   // and no other fields

	Public []PublicKey `json:"public_keys,omitempty"` // of a key that signs
}
