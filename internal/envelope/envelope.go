// Package envelope is the byte form of a Trikey ciphertext and of the context it
// is bound to: parsing and writing, no cryptography. docs/format.md describes
// the same for readers of other languages.
//
//	version 1 | suite 1 | key index 4 | key version 4 | salt 16 | nonce 12 | ciphertext | tag 16
//
// Numbers are big endian. The text form is tk1. followed by the binary form in
// base64url without padding.
package envelope

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"

	"github.com/trikey/trikey/internal/fault"
)

// Sizes, in bytes.
const (
	SaltSize   = 16
	NonceSize  = 12
	TagSize    = 16
	HeaderSize = boundSize + SaltSize + NonceSize
	Overhead   = HeaderSize + TagSize // what a ciphertext has over its plaintext
	boundSize  = 1 + 1 + 4 + 4        // the part of the header that is authenticated as it stands
)

// Version is the format's version, the first byte of a ciphertext.
const Version = 1

// TextPrefix begins the text form.
const TextPrefix = "tk1."

// Header is what stands in front of a ciphertext.
type Header struct {
	Suite   byte
	Index   uint32 // of the business key
	Version uint32 // of the business key
	Salt    [SaltSize]byte
	Nonce   [NonceSize]byte
}

// Parse reads the header and returns the rest, ciphertext and tag. Whatever is
// wrong is fault.DecryptFailed.
func Parse(b []byte) (Header, []byte, error) {
	var h Header
	if len(b) < Overhead {
		return h, nil, fault.New(fault.DecryptFailed, "too short to be a ciphertext")
	}
	if b[0] != Version {
		return h, nil, fault.New(fault.DecryptFailed, "unknown format version %d", b[0])
	}
	h.Suite = b[1]
	h.Index = binary.BigEndian.Uint32(b[2:])
	h.Version = binary.BigEndian.Uint32(b[6:])
	copy(h.Salt[:], b[boundSize:])
	copy(h.Nonce[:], b[boundSize+SaltSize:])
	return h, b[HeaderSize:], nil
}

func (h *Header) appendBound(dst []byte) []byte {
	dst = append(dst, Version, h.Suite)
	dst = binary.BigEndian.AppendUint32(dst, h.Index)
	return binary.BigEndian.AppendUint32(dst, h.Version)
}

// Append appends the header's bytes to dst.
func (h *Header) Append(dst []byte) []byte {
	dst = h.appendBound(dst)
	dst = append(dst, h.Salt[:]...)
	return append(dst, h.Nonce[:]...)
}

// AppendAAD appends what the tag authenticates besides the plaintext: the
// header's bytes before the salt, and the canonical context. Salt and nonce need
// no more: they decide the key and the keystream.
func (h *Header) AppendAAD(dst, canonical []byte) []byte {
	return append(h.appendBound(dst), canonical...)
}

// AppendSaltedAAD is AppendAAD for the suites in which the salt decides no key: it
// is authenticated as it stands, between the header's other bytes and the context.
func (h *Header) AppendSaltedAAD(dst, canonical []byte) []byte {
	return append(append(h.appendBound(dst), h.Salt[:]...), canonical...)
}

// AppendText appends the text form of a binary ciphertext to dst.
func AppendText(dst, binary []byte) []byte {
	return base64.RawURLEncoding.AppendEncode(append(dst, TextPrefix...), binary)
}

var errNoText = fault.New(fault.DecryptFailed, "not a ciphertext of the form %s…", TextPrefix)

// strict refuses the non-zero trailing bits that would give one ciphertext several texts.
var strict = base64.RawURLEncoding.Strict()

// DecodeText appends the binary form of a text to dst. Every ciphertext has
// exactly one text: anything else is fault.DecryptFailed.
func DecodeText(dst, text []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(text, []byte(TextPrefix))
	// The decoder skips line ends; a ciphertext has none.
	if !ok || bytes.ContainsAny(rest, "\r\n") {
		return dst, errNoText
	}
	out, err := strict.AppendDecode(dst, rest)
	if err != nil {
		return dst, errNoText
	}
	return out, nil
}
