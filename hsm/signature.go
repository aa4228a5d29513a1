package hsm

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"

	"github.com/trikey/trikey/internal/fault"
)

// Signature is a machine's, by its identity key: Ed25519 (RFC 8032) over "trikey/v1/", the
// context, a line end, and the message. The context keeps what one kind of statement says
// from being taken for another.
type Signature struct {
	PublicKey   []byte `json:"public_key"`
	Fingerprint string `json:"fingerprint"` // SHA-256 of the public key, in hex
	Signature   []byte `json:"signature"`
}

// SignaturePrefix begins everything that a machine signs with its identity key.
const SignaturePrefix = "trikey/v1/"

// SignedBytes returns what a signature of that context is over.
func SignedBytes(context string, message []byte) []byte {
	return append([]byte(SignaturePrefix+context+"\n"), message...)
}

// Fingerprint returns the name of an identity key.
func Fingerprint(publicKey []byte) string {
	sum := sha256.Sum256(publicKey)
	return hex.EncodeToString(sum[:])
}

// Check checks the signature, and that it is by the machine of that fingerprint, if one
// is given.
func (s Signature) Check(context string, message []byte, fingerprint string) error {
	actual := Fingerprint(s.PublicKey)
	switch {
	case len(s.PublicKey) != ed25519.PublicKeySize || !ed25519.Verify(s.PublicKey, SignedBytes(context, message), s.Signature):
		return fault.New(fault.RecordDamaged, "the signature does not match: the %s was altered", context)
	case actual != s.Fingerprint || fingerprint != "" && fingerprint != actual:
		return fault.New(fault.RecordDamaged, "the %s is signed by the machine with fingerprint %s, not %s", context, actual, fingerprint)
	}
	return nil
}
