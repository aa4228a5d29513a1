// Package keyexport is how a machine gives out a business key: PKCS#11's
// CKM_RSA_AES_KEY_WRAP (version 3.0 section 2.1.21) to the public key of whoever shall
// have it, which is what package keyimport takes in.
//
// The machine draws an AES-256 key, wraps it to the receiver with RSA-OAEP (RFC 8017
// section 7.1, SHA-256 for the hash and MGF1, no label) and the business key under it with
// AES-KWP (RFC 5649). Both, one after the other, are the blob.
package keyexport

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Bounds of a receiver's modulus, in bits: 3072 are the 128 bits of security (NIST SP 800-57
// part 1, table 2) that AES-KWP behind it is not to be weaker than.
const (
	MinBits = 3072
	MaxBits = 8192
)

const (
	minExponent = 1<<16 + 1 // NIST SP 800-56B section 6.2
	kekSize     = 32
)

// Receiver is the public key that a business key is wrapped for.
type Receiver struct {
	public      *rsa.PublicKey
	fingerprint string
}

// ParseReceiver reads the DER of a SubjectPublicKeyInfo (RFC 5280 section 4.1) with an RSA
// key.
func ParseReceiver(der []byte) (*Receiver, error) {
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fault.New(fault.BadRequest, "export: the receiver's public key cannot be read; give a SubjectPublicKeyInfo (BEGIN PUBLIC KEY)")
	}
	public, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, fault.New(fault.BadRequest, "export: the receiver's public key is %T, not RSA; take one of trikey key import begin, or of an HSM that has CKM_RSA_AES_KEY_WRAP", parsed)
	}
	if bits := public.N.BitLen(); bits < MinBits || bits > MaxBits {
		return nil, fault.New(fault.BadRequest, "export: the receiver's RSA key has %d bits; it must have %d to %d: have the receiver make another", bits, MinBits, MaxBits)
	}
	// Two encodings of one key would have two fingerprints.
	again, err := x509.MarshalPKIXPublicKey(public)
	if err != nil || public.E < minExponent || public.E&1 == 0 || !bytes.Equal(again, der) {
		return nil, fault.New(fault.BadRequest, "export: the receiver's RSA key is unusual (its exponent is below %d or even, or its encoding is not DER); have the receiver make another", minExponent)
	}
	return &Receiver{public, Fingerprint(der)}, nil
}

// Fingerprint is the SHA-256 of a SubjectPublicKeyInfo, in hex, which people compare.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// Fingerprint is that of the receiver's key.
func (r *Receiver) Fingerprint() string { return r.fingerprint }

// Bits is the length of the modulus.
func (r *Receiver) Bits() int { return r.public.N.BitLen() }

// Wrap returns the blob of a business key. It leaves on the heap what the library has made
// of the AES key (docs/threat-model.md).
func (r *Receiver) Wrap(key []byte) (blob []byte, err error) {
	kek, err := secret.Random(kekSize)
	if err != nil {
		return nil, err
	}
	defer kek.Wipe()
	err = kek.Use(func(k []byte) error {
		return secret.Scrub(func() error {
			head, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, r.public, k, nil)
			if err != nil {
				return fault.Wrap(fault.BadRequest, err, "export: nothing can be encrypted to the receiver's RSA key; have the receiver make another")
			}
			tail, err := alg.WrapKWP(k, key)
			blob = append(head, tail...)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return blob, nil
}
