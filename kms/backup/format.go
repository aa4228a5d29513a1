// Package backup is the form of a backup: the records of a key store at one moment,
// sealed by the machine, with a manifest that the machine's identity has signed.
//
//	magic "TKBACK1\n" | length 4 | header | chunks × (length 4 | sealed) | 0 4 |
//	length 4 | manifest | public key 32 | signature 64
//
// Header and manifest are JSON. A chunk is what the machine seals as the record
// "backup/<id>" of the revision 2 × number, and one more for the last: so none can be
// left out, moved or added, nor the end cut off. Chunks together are a stream of frames:
//
//	kind 1 | name length 2 | name | value length 4 | value
//
// of the kinds put, delete and, at the end, summary, which has the SHA-256 of the header and
// which the manifest repeats. The manifest has the SHA-256 of everything before it; the signature is over its bytes.
// Numbers are big endian.
package backup

import (
	"time"

	"github.com/trikey/trikey/hsm"
)

const (
	magic = "TKBACK1\n"

	// chunkSize is how much of the stream of frames is sealed at a time.
	chunkSize = 64 << 10
	// maxChunk bounds a sealed chunk, maxHeader a header and a manifest.
	maxChunk  = chunkSize + 64
	maxHeader = 8 << 20

	// signature is the context of the manifest's signature.
	signature = "backup"
)

// Kinds of frames.
const (
	put     = 1
	del     = 2
	summary = 3
)

// Header begins a backup. The manifest's signature is over it too.
type Header struct {
	ID      hsm.ID     `json:"id"`
	Created time.Time  `json:"created"`
	Release string     `json:"release"` // of the program that made it
	Record  hsm.Record `json:"record"`  // of the machine: which cards open it
	Epochs  hsm.ID     `json:"epochs"`  // of the destruction keys that go with it

	// Files are what else the cards need, by path in the data directory: shares that are
	// sealed to cards.
	Files map[string][]byte `json:"files,omitempty"`
}

// Summary says what is in a backup.
type Summary struct {
	Revision     int64  `json:"revision"` // of the store, whose state it is
	Records      int    `json:"records"`
	Keys         int    `json:"keys"`
	Versions     int    `json:"versions"`     // of keys; those that are destroyed too
	KCVs         []byte `json:"kcvs_sha256"`  // of a line "INDEX VERSION KCV" for each version, in order
	Destructions uint64 `json:"destructions"` // counter of the destruction keys at that moment
	AuditEvents  int64  `json:"audit_events"` // in the audit log when it was begun
	AuditHead    string `json:"audit_head,omitempty"`

	// Header is the SHA-256 of the header. The summary is sealed under the root key, so what
	// is in the header is of whoever had the machine, and not of whoever signs.
	Header []byte `json:"header_sha256"`
}

// Manifest is what the machine signs of a backup.
type Manifest struct {
	Header  Header  `json:"header"`
	Summary Summary `json:"summary"`
	SHA256  []byte  `json:"sha256"` // of everything before the manifest
}

func chunkID(id hsm.ID, number uint64, last bool) hsm.RecordID {
	r := hsm.RecordID{Name: "backup/" + id.String(), Revision: number * 2}
	if last {
		r.Revision++
	}
	return r
}
