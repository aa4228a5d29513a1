package alg

import (
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

// Seal appends a whole binary ciphertext to dst: header, ciphertext, tag. The key
// is the message key of the header's suite and salt. The header's nonce is drawn
// by the engine, from the kernel, for this one message; it is never a caller's of
// the API. dst must not overlap the plaintext.
//
// An engine that seals many messages under one key builds a Cipher once, and does
// the same with it.
func Seal(dst, key []byte, h *envelope.Header, canonicalContext, plaintext []byte) ([]byte, error) {
	c, err := NewCipher(ID(h.Suite), key)
	if err != nil {
		return dst, err
	}
	defer c.Erase()
	return c.Seal(h.Append(dst), h.Nonce[:], plaintext, h.AppendAAD(nil, canonicalContext)), nil
}

// Open appends the plaintext of a whole binary ciphertext to dst. The key is the
// message key of the ciphertext's own header. Whatever is wrong with the
// ciphertext is fault.DecryptFailed. dst must not overlap the ciphertext.
func Open(dst, key, canonicalContext, binary []byte) ([]byte, error) {
	h, sealed, err := envelope.Parse(binary)
	if err != nil {
		return dst, err
	}
	if _, err := Lookup(ID(h.Suite)); err != nil {
		return dst, fault.New(fault.DecryptFailed, "there is no suite %d", h.Suite)
	}
	c, err := NewCipher(ID(h.Suite), key)
	if err != nil {
		return dst, err
	}
	defer c.Erase()
	return c.Open(dst, h.Nonce[:], sealed, h.AppendAAD(nil, canonicalContext))
}
