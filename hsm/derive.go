package hsm

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/secret"
)

// What is derived from the root key. Each use has a key of its own, so that no
// two of them can be played against each other.
const (
	useWrap   = "trikey/v1/wrap"    // wraps business keys by AES-GCM
	useWrapKW = "trikey/v1/wrap-kw" // wraps business keys by AES key wrap
	useBind   = "trikey/v1/bind"    // authenticates the headers of the latter
	useRecord = "trikey/v1/record"  // seals the other records of the key store
)

// WrapKey derives the key that wraps business keys:
// HKDF-SHA256(root, no salt, "trikey/v1/wrap" | generation).
func (r Root) WrapKey() (*secret.Bytes, error) { return r.derive(useWrap) }

// WrapKWKey derives the key that wraps business keys inside a token:
// HKDF-SHA256(root, no salt, "trikey/v1/wrap-kw" | generation). It is not WrapKey, so
// that no key serves two mechanisms.
func (r Root) WrapKWKey() (*secret.Bytes, error) { return r.derive(useWrapKW) }

// BindKey derives the key that binds what a token wraps to its header, because AES
// key wrap takes no additional data:
// HKDF-SHA256(root, no salt, "trikey/v1/bind" | generation).
func (r Root) BindKey() (*secret.Bytes, error) { return r.derive(useBind) }

// RecordKey derives the key that seals records:
// HKDF-SHA256(root, no salt, "trikey/v1/record" | generation).
func (r Root) RecordKey() (*secret.Bytes, error) { return r.derive(useRecord) }

func (r Root) derive(use string) (*secret.Bytes, error) {
	info := binary.BigEndian.AppendUint32([]byte(use), r.Generation)
	return secret.Fill(RootSize, func(dst []byte) error {
		return r.Key.Use(func(root []byte) error {
			return secret.Derive(func() error { return alg.HKDF(sha256.New, dst, root, nil, info) })
		})
	})
}
