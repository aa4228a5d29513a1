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
	useWrap   = "trikey/v1/wrap"   // wraps business keys
	useRecord = "trikey/v1/record" // seals the other records of the key store
)

// WrapKey derives the key that wraps business keys:
// HKDF-SHA256(root, no salt, "trikey/v1/wrap" | generation).
func (r Root) WrapKey() (*secret.Bytes, error) { return r.derive(useWrap) }

// RecordKey derives the key that seals records:
// HKDF-SHA256(root, no salt, "trikey/v1/record" | generation).
func (r Root) RecordKey() (*secret.Bytes, error) { return r.derive(useRecord) }

func (r Root) derive(use string) (*secret.Bytes, error) {
	info := binary.BigEndian.AppendUint32([]byte(use), r.Generation)
	return secret.Fill(RootSize, func(dst []byte) error {
		return r.Key.Use(func(root []byte) error {
			return secret.Scrub(func() error { return alg.HKDF(sha256.New, dst, root, nil, info) })
		})
	})
}
