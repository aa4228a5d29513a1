package hsm

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
)

// Binding is what a business key is for. It is authenticated with the wrapped
// key: a wrapped key cannot be made to pass for another index, version,
// algorithm, purpose or region.
type Binding struct {
	Index      uint32
	Version    uint32
	Algorithm  alg.ID // the suite the key seals with unless a call says otherwise
	Purpose    Purpose
	Region     string // at most 255 bytes
	Exportable bool
}

// NotExportable is the refusal to give out a key that is not bound to be exportable.
func NotExportable(index uint32) error {
	return fault.New(fault.Forbidden, "key %d was not made exportable, which cannot be changed; re-encrypt its data to a key that is (key create --exportable)", index)
}

// Wrap suites: how a wrapped key is sealed.
const (
	// WrapGCM is AES-256-GCM with a random nonce under HKDF(root, "wrap", generation).
	WrapGCM = 1
	// WrapKW is AES key wrap (RFC 3394) inside a token under HKDF(root, "wrap-kw",
	// generation), and an HMAC-SHA256 of all before it under HKDF(root, "bind", generation).
	WrapKW = 2
)

const (
	wrappedFormat = 1
	wrappedPrefix = "tw1."
	wrapNonceSize = 12
	wrapFixed     = 1 + 1 + 4 + 4 + 4 + 1 + 1 + 1 + 1 // the header without the region
	flagExport    = 1
	// BusinessKeySize is the length of every business key, in bytes: message keys
	// of any suite are derived from 256 bits.
	BusinessKeySize = 32
	// WrapKWSize is the length of what AES key wrap makes of a business key.
	WrapKWSize = BusinessKeySize + 8
	// WrapKWTagSize is the length of the tag of a key wrapped by WrapKW.
	WrapKWTagSize = 32
)

// WrappedKey is a business key as only a machine of its root can open it, with
// the binding in front:
//
//	format 1 | wrap suite 1 | generation 4 | index 4 | version 4 | algorithm 1 |
//	purpose 1 | flags 1 | region length 1 | region | sealed
//
// Sealed is nonce 12 | ciphertext 32 | tag 16 in WrapGCM, ciphertext 40 | tag 32 in
// WrapKW.
//
// It is a string because it never changes and serves as a key of caches.
type WrappedKey string

// WrapHeader is the part of a wrapped key that is not secret.
type WrapHeader struct {
	Suite      uint8
	Generation uint32
	Binding
}

// Append appends the header's bytes, which are also what the wrapped key's tag
// authenticates, to dst.
func (h WrapHeader) Append(dst []byte) ([]byte, error) {
	if len(h.Region) > 255 {
		return nil, fault.New(fault.BadRequest, "region: longer than 255 bytes")
	}
	var flags byte
	if h.Exportable {
		flags = flagExport
	}
	dst = append(dst, wrappedFormat, h.Suite)
	dst = binary.BigEndian.AppendUint32(dst, h.Generation)
	dst = binary.BigEndian.AppendUint32(dst, h.Index)
	dst = binary.BigEndian.AppendUint32(dst, h.Version)
	dst = append(dst, byte(h.Algorithm), byte(h.Purpose), flags, byte(len(h.Region)))
	return append(dst, h.Region...), nil
}

// Split parses the header and returns the header's bytes, which the tag
// authenticates, the nonce, which WrapKW has none of, and the sealed key with its tag.
func (w WrappedKey) Split() (h WrapHeader, aad, nonce, sealed string, err error) {
	s := string(w)
	bad := func(what string) (WrapHeader, string, string, string, error) {
		return WrapHeader{}, "", "", "", fault.New(fault.RecordDamaged, "wrapped key: %s", what)
	}
	if len(s) < wrapFixed {
		return bad("too short")
	}
	if s[0] != wrappedFormat {
		return bad(fmt.Sprintf("unknown format %d", s[0]))
	}
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32([]byte(s[at : at+4])) }
	end := wrapFixed + int(s[wrapFixed-1])
	nonceSize, sealedSize := wrapNonceSize, BusinessKeySize+16
	switch s[1] {
	case WrapGCM:
	case WrapKW:
		nonceSize, sealedSize = 0, WrapKWSize+WrapKWTagSize
	default:
		return bad(fmt.Sprintf("unknown wrap suite %d", s[1]))
	}
	if len(s) != end+nonceSize+sealedSize {
		return bad("wrong length")
	}
	if s[16]&^flagExport != 0 {
		return bad("unknown flags")
	}
	h = WrapHeader{Suite: s[1], Generation: u32(2), Binding: Binding{
		Index: u32(6), Version: u32(10), Algorithm: alg.ID(s[14]), Purpose: Purpose(s[15]),
		Exportable: s[16]&flagExport != 0, Region: s[wrapFixed:end],
	}}
	return h, s[:end], s[end : end+nonceSize], s[end+nonceSize:], nil
}

// Generation returns the generation of the root that wrapped the key, 0 when it is
// not a wrapped key at all.
func (w WrappedKey) Generation() uint32 {
	if len(w) < wrapFixed {
		return 0
	}
	return binary.BigEndian.Uint32([]byte(w[2:6]))
}

// Header parses the part of the wrapped key that is not secret. Nothing is
// authenticated by that; only a machine can.
func (w WrappedKey) Header() (WrapHeader, error) {
	h, _, _, _, err := w.Split()
	return h, err
}

// String returns the text form: tw1. and base64url without padding.
func (w WrappedKey) String() string {
	return wrappedPrefix + base64.RawURLEncoding.EncodeToString([]byte(w))
}

// MarshalText returns the text form.
func (w WrappedKey) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText parses the text form.
func (w *WrappedKey) UnmarshalText(text []byte) error {
	rest, ok := strings.CutPrefix(string(text), wrappedPrefix)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if !ok || err != nil {
		return fault.New(fault.RecordDamaged, "wrapped key: not of the form %s…", wrappedPrefix)
	}
	*w = WrappedKey(raw)
	_, err = w.Header()
	return err
}
