package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
)

// segmentSize is how much of the plaintext a segment has, but for the last.
const segmentSize = 65536

// segment is one segment of a stream's vector.
type segment struct {
	Counter        int    `json:"counter"`
	Last           bool   `json:"last"`
	Nonce          octets `json:"nonce"`
	PlaintextBytes int    `json:"plaintext_bytes"`
	Tag            octets `json:"tag"`
	SHA256         octets `json:"sha256"`
}

// stream seals the plaintext of the vector, whose byte i is i mod 251, as a stream.
func (v *vector) stream() error {
	header := binary.BigEndian.AppendUint32([]byte{2, v.Suite}, v.Index)
	header = slices.Concat(binary.BigEndian.AppendUint32(header, v.KeyVersion), v.Salt, v.NoncePrefix)
	canonical := canonicalForm(v.Context)
	aad := slices.Concat(header, canonical)
	info := slices.Concat([]byte("trikey/v1/stream"), header[1:10])
	key := hkdf(newHash(v.Suite), v.BusinessKey, v.Salt, info, keySizes[v.Suite])
	aead, err := newAEAD(v.Suite, key)
	if err != nil {
		return err
	}
	plaintext := make([]byte, v.PlaintextBytes)
	for i := range plaintext {
		plaintext[i] = byte(i % 251)
	}
	whole := slices.Clone(header)
	for i, rest := 0, plaintext; ; i++ {
		piece := rest[:min(len(rest), segmentSize)]
		rest = rest[len(piece):]
		nonce := append(binary.BigEndian.AppendUint32(slices.Clone([]byte(v.NoncePrefix)), uint32(i)), 0)
		if len(rest) == 0 {
			nonce[11] = 1
		}
		sealed := aead.Seal(nil, nonce, piece, aad)
		sum := sha256.Sum256(sealed)
		if i >= len(v.Segments) {
			return fmt.Errorf("more than %d segments", i)
		}
		want := v.Segments[i]
		if want.Counter != i || want.Last != (len(rest) == 0) || want.PlaintextBytes != len(piece) {
			return fmt.Errorf("segment %d is not number %d of %d bytes", i, want.Counter, want.PlaintextBytes)
		}
		if err := compare(step{"nonce", nonce, want.Nonce}, step{"tag", sealed[len(piece):], want.Tag}, step{"segment", sum[:], want.SHA256}); err != nil {
			return err
		}
		if whole = append(whole, sealed...); len(rest) == 0 {
			break
		}
	}
	if len(whole) != v.StreamBytes {
		return fmt.Errorf("the stream has %d bytes, not %d", len(whole), v.StreamBytes)
	}
	plain, all := sha256.Sum256(plaintext), sha256.Sum256(whole)
	if len(v.Stream) == 0 && len(whole) > 512 {
		v.Stream = whole // too long to be in the file
	}
	return compare(
		step{"header", header, v.Header}, step{"canonical context", canonical, v.Canonical}, step{"additional data", aad, v.AAD}, step{"info", info, v.Info},
		step{"stream key", key, v.StreamKey}, step{"plaintext", plain[:], v.PlaintextSHA256}, step{"digest", all[:], v.StreamSHA256}, step{"stream", whole, v.Stream},
	)
}
