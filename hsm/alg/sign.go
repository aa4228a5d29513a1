package alg

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/pem"
	"math/big"

	"github.com/emmansun/gmsm/sm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// signer is a signature algorithm. Private keys are 32 bytes: the seed of RFC 8032, or
// a scalar. Public keys are the 32 bytes of RFC 8032, or an uncompressed point (SEC 1
// section 2.3.3). Signatures are 64 bytes: those of RFC 8032, or r | s.
type signer struct {
	largest []byte // scalar that a private key may be; nil where each 32 bytes are one
	spki    []byte // SubjectPublicKeyInfo (RFC 5280) up to the public key
	public  func(private []byte) ([]byte, error)
	sign    func(private, message []byte) ([]byte, error)
	verify  func(public, message, signature []byte) bool
}

const (
	privateSize = 32
	scalarSize  = 32
	signInfo    = "trikey/v1/sign"
	maxTries    = 256 // one byte counts them; a second is needed once in 2^32 keys
)

// Sign signs a message with the private key of a version of a business key. It leaves
// copies of the private key that only the garbage collector reaches, so it belongs into
// secret.Scrub for what is on the stack; docs/threat-model.md tells of the rest.
func Sign(id ID, businessKey []byte, index, version uint32, message []byte) ([]byte, error) {
	return withPrivate(id, businessKey, index, version, func(s *signer, private []byte) ([]byte, error) { return s.sign(private, message) })
}

// PublicKey returns the public key of a version of a business key.
func PublicKey(id ID, businessKey []byte, index, version uint32) ([]byte, error) {
	return withPrivate(id, businessKey, index, version, func(s *signer, private []byte) ([]byte, error) { return s.public(private) })
}

// Verify reports whether the signature of the message is that of the public key's owner.
func Verify(id ID, public, message, signature []byte) (bool, error) {
	s, err := signerOf(id)
	if err != nil {
		return false, err
	}
	return s.verify(public, message, signature), nil
}

// PublicPEM returns a public key as PEM of a SubjectPublicKeyInfo (RFC 5280, RFC 8410,
// RFC 5480; for SM2 the curve of GB/T 32918, 1.2.156.10197.1.301).
func PublicPEM(id ID, public []byte) (string, error) {
	s, err := signerOf(id)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: append(bytes.Clone(s.spki), public...)})), nil
}

func signerOf(id ID) (*signer, error) {
	a, err := Lookup(id)
	if err == nil && a.sign == nil {
		err = fault.New(fault.AlgorithmNotAllowed, "algorithm: %s does not sign", a.Name)
	}
	if err != nil {
		return nil, err
	}
	return a.sign, nil
}

func withPrivate(id ID, businessKey []byte, index, version uint32, use func(*signer, []byte) ([]byte, error)) ([]byte, error) {
	s, err := signerOf(id)
	if err != nil {
		return nil, err
	}
	private := make([]byte, privateSize)
	defer clear(private)
	if s.largest == nil {
		copy(private, businessKey)
	} else if err := deriveScalar(id, private, businessKey, index, version, s.largest); err != nil {
		return nil, err
	}
	return use(s, private)
}

// deriveScalar fills dst with the first of the candidates HKDF(hash, business key, no salt,
// "trikey/v1/sign" | algorithm 1 | index 4 | version 4 | counter 1), counter 0, 1, …, that is
// 1 to largest: FIPS 186-5 appendix A.2.2 (testing candidates), with HKDF for the bit generator.
func deriveScalar(id ID, dst, businessKey []byte, index, version uint32, largest []byte) error {
	a, err := Lookup(id)
	if err != nil {
		return err
	}
	info := append([]byte(signInfo), byte(id))
	info = binary.BigEndian.AppendUint32(info, index)
	info = binary.BigEndian.AppendUint32(info, version)
	zero := make([]byte, len(dst))
	for counter := range maxTries {
		if err := HKDF(a.Hash, dst, businessKey, nil, append(info, byte(counter))); err != nil {
			return err
		}
		if bytes.Compare(dst, largest) <= 0 && subtle.ConstantTimeCompare(dst, zero) == 0 {
			return nil
		}
	}
	return fault.New(fault.Internal, "no private key follows from this business key; rotate the key")
}

var signEd25519 = signer{
	spki: unhex("302a300506032b6570032100"),
	public: func(private []byte) ([]byte, error) {
		key := ed25519.NewKeyFromSeed(private)
		defer clear(key)
		return bytes.Clone(key[ed25519.SeedSize:]), nil
	},
	sign: func(private, message []byte) ([]byte, error) {
		key := ed25519.NewKeyFromSeed(private)
		defer clear(key)
		return ed25519.Sign(key, message), nil
	},
	verify: func(public, message, signature []byte) bool {
		return len(public) == ed25519.PublicKeySize && ed25519.Verify(public, message, signature)
	},
}

// signECDSA is ECDSA on P-256 with SHA-256 (FIPS 186-5 section 6).
var signECDSA = signer{
	largest: unhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632550"), // n-1
	spki:    unhex("3059301306072a8648ce3d020106082a8648ce3d030107034200"),
	public: func(private []byte) ([]byte, error) {
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), private)
		if err != nil {
			return nil, err
		}
		defer eraseScalar(key)
		return key.PublicKey.Bytes()
	},
	sign: func(private, message []byte) ([]byte, error) {
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), private)
		if err != nil {
			return nil, err
		}
		defer eraseScalar(key)
		digest := sha256.Sum256(message)
		der, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			return nil, err
		}
		return FromDER(der)
	},
	verify: func(public, message, signature []byte) bool {
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), public)
		der, bad := ToDER(signature)
		digest := sha256.Sum256(message)
		return err == nil && bad == nil && ecdsa.VerifyASN1(key, digest[:], der)
	},
}

// signSM2 is SM2 with SM3 (GB/T 32918.2), with the identity of GM/T 0009 section 10,
// 1234567812345678, in Z.
var signSM2 = signer{
	largest: unhex("fffffffeffffffffffffffffffffffff7203df6b21c6052b53bbf40939d54121"), // n-2
	spki:    unhex("3059301306072a8648ce3d020106082a811ccf5501822d034200"),
	public: func(private []byte) ([]byte, error) {
		key, err := sm2.NewPrivateKey(private)
		if err != nil {
			return nil, err
		}
		defer eraseSM2(key)
		point, err := sm2.PublicKeyToECDH(&key.PublicKey)
		if err != nil {
			return nil, err
		}
		return point.Bytes(), nil
	},
	sign: func(private, message []byte) ([]byte, error) {
		key, err := sm2.NewPrivateKey(private)
		if err != nil {
			return nil, err
		}
		defer eraseSM2(key)
		digest, err := sm2.CalculateSM2Hash(&key.PublicKey, message, nil)
		if err != nil {
			return nil, err
		}
		der, err := sm2.SignASN1(rand.Reader, key, digest, nil)
		if err != nil {
			return nil, err
		}
		return FromDER(der)
	},
	verify: func(public, message, signature []byte) bool {
		key, err := sm2.NewPublicKey(public)
		if err != nil {
			return false
		}
		digest, err := sm2.CalculateSM2Hash(key, message, nil)
		der, bad := ToDER(signature)
		return err == nil && bad == nil && sm2.VerifyASN1(key, digest, der)
	},
}

func eraseScalar(key *ecdsa.PrivateKey) {
	clear(key.D.Bits()) //nolint:staticcheck // deprecated for computing; there is no other way to erase it
}

func eraseSM2(key *sm2.PrivateKey) {
	eraseScalar(&key.PrivateKey)
	secret.Erase(&key.PrivateKey)
}

// FromDER turns a DER signature (SEQUENCE of r and s: RFC 3279 section 2.2.3, GM/T 0009
// section 7.3) into r | s of 32 bytes each.
func FromDER(der []byte) ([]byte, error) {
	input, seq := cryptobyte.String(der), cryptobyte.String(nil)
	r, s := new(big.Int), new(big.Int)
	if !input.ReadASN1(&seq, asn1.SEQUENCE) || !input.Empty() || !seq.ReadASN1Integer(r) || !seq.ReadASN1Integer(s) || !seq.Empty() ||
		r.Sign() < 0 || s.Sign() < 0 || r.BitLen() > 8*scalarSize || s.BitLen() > 8*scalarSize {
		return nil, errNoSignature
	}
	raw := make([]byte, 2*scalarSize)
	r.FillBytes(raw[:scalarSize])
	s.FillBytes(raw[scalarSize:])
	return raw, nil
}

// ToDER is the reverse of FromDER.
func ToDER(raw []byte) ([]byte, error) {
	if len(raw) != 2*scalarSize {
		return nil, errNoSignature
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[:scalarSize]))
		b.AddASN1BigInt(new(big.Int).SetBytes(raw[scalarSize:]))
	})
	return b.Bytes()
}

var errNoSignature = fault.New(fault.BadRequest, "signature: neither r | s of 64 bytes nor a DER sequence of r and s")
