package engine

import (
	"crypto/rand"
	"encoding/binary"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

const (
	recordFormat = 1
	recordHead   = 1 + 4 // format, generation
)

// recordAAD is what a sealed record's tag authenticates besides its content:
// "trikey/v1/record" | format | generation | name length 4 | name | revision 8.
func recordAAD(scratch, head []byte, id hsm.RecordID) []byte {
	scratch = append(scratch[:0], "trikey/v1/record"...)
	scratch = append(scratch, head...)
	scratch = binary.BigEndian.AppendUint32(scratch, uint32(len(id.Name)))
	scratch = append(scratch, id.Name...)
	return binary.BigEndian.AppendUint64(scratch, id.Revision)
}

// SealRecord appends format 1 | generation 4 | nonce 12 | ciphertext | tag 16 to dst.
// The cipher is that of the generation's record key.
func SealRecord(dst []byte, c alg.Cipher, generation uint32, id hsm.RecordID, plaintext []byte) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(append(dst, recordFormat), generation)
	aad := recordAAD(nil, dst[start:], id)
	var nonce [envelope.NonceSize]byte
	_, _ = rand.Read(nonce[:]) // never fails
	dst = append(dst, nonce[:]...)
	return c.Seal(dst, nonce[:], plaintext, aad)
}

// RecordGeneration returns the generation of the root that a record is sealed under.
func RecordGeneration(id hsm.RecordID, sealed []byte) (uint32, error) {
	if len(sealed) < recordHead+envelope.NonceSize || sealed[0] != recordFormat {
		return 0, RecordAltered(id)
	}
	return binary.BigEndian.Uint32(sealed[1:]), nil
}

// OpenRecord appends the content of what SealRecord made to dst. RecordGeneration has
// accepted sealed.
func OpenRecord(dst []byte, c alg.Cipher, id hsm.RecordID, sealed []byte) ([]byte, error) {
	head, rest := sealed[:recordHead], sealed[recordHead:]
	out, err := c.Open(dst, rest[:envelope.NonceSize], rest[envelope.NonceSize:], recordAAD(nil, head, id))
	if err != nil {
		return dst, RecordAltered(id)
	}
	return out, nil
}

// RecordAltered says that a record does not open.
func RecordAltered(id hsm.RecordID) error {
	return fault.New(fault.RecordDamaged, "record %s: edited, copied from another, or sealed by another machine; "+
		"restore the key store from a backup", id.Name)
}
