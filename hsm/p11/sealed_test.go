package p11

import (
	"bytes"
	"crypto/sha256"
	"testing"
)

// FuzzSealedFile: whatever parses is encoded as it was.
func FuzzSealedFile(f *testing.F) {
	e := sealedEntry{oaep: 1, key: []byte("key"), nonce: make([]byte, nonceSize), object: []byte("object")}
	for _, s := range []sealedFile{{}, {serial: "1"}, {serial: "0123456789abcdef", entries: []sealedEntry{e, e}}} {
		raw := s.encode()
		f.Add(raw[:len(raw)-sha256.Size])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := sha256.Sum256(body) // or nothing would get past the checksum
		raw := append(body[:len(body):len(body)], sum[:]...)
		var s sealedFile
		if s.parse(raw) && !bytes.Equal(s.encode(), raw) {
			t.Errorf("%x parses, and is encoded as %x", raw, s.encode())
		}
	})
}
