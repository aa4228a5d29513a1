// Package kwp is the sender's half of AES key wrap with padding, for tests: written apart
// from the product's, so that one mistake is not in both.
package kwp

import (
	"bytes"
	"crypto/aes"
	"encoding/binary"
	"testing"
)

// Wrap wraps a key of 9 bytes or more under kek (RFC 5649 section 4.1).
func Wrap(t testing.TB, kek, key []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	out := binary.BigEndian.AppendUint32([]byte{0xa6, 0x59, 0x59, 0xa6}, uint32(len(key)))
	out = append(append(out, key...), make([]byte, -len(key)&7)...)
	n := len(out)/8 - 1
	for s := range 6 * n {
		at := out[8*(s%n+1):][:8]
		b := append(bytes.Clone(out[:8]), at...)
		block.Encrypt(b, b)
		binary.BigEndian.PutUint64(out, binary.BigEndian.Uint64(b)^uint64(s+1))
		copy(at, b[8:])
	}
	return out
}
