package main

import (
	"bytes"
	"crypto/aes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"hash"
	"math/big"
	"slices"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
)

func (v *vector) mac() error {
	newHash := sha256.New
	if v.Algorithm == "hmac-sm3" {
		newHash = sm3.New
	}
	input := []byte(v.Message)
	if v.BlindIndex {
		canonical := canonicalForm(v.Context)
		input = slices.Concat([]byte("trikey/v1/index"), binary.BigEndian.AppendUint32(nil, uint32(len(canonical))), canonical, v.Message)
	}
	return compare(step{"input", input, v.Input}, step{"code", hmacOf(newHash, v.BusinessKey, input), v.Mac})
}

// scalar derives a private key of ECDSA or SM2.
func (v *vector) scalar(newHash func() hash.Hash, algorithm byte) []byte {
	info := append([]byte("trikey/v1/sign"), algorithm)
	info = binary.BigEndian.AppendUint32(info, v.Index)
	info = binary.BigEndian.AppendUint32(info, v.KeyVersion)
	return hkdf(newHash, v.BusinessKey, nil, append(info, 0), 32) // no vector needs a second try
}

func (v *vector) sign() error {
	var public, prefix []byte
	var good bool
	r, s := new(big.Int), new(big.Int)
	if len(v.Signature) == 64 {
		r.SetBytes(v.Signature[:32])
		s.SetBytes(v.Signature[32:])
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
	if err != nil {
		return err
	}
	switch v.Algorithm {
	case "ed25519":
		private := ed25519.NewKeyFromSeed(v.BusinessKey)
		public = private[32:]
		prefix = []byte{0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0}
		good = ed25519.Verify(public, v.Message, v.Signature) && bytes.Equal(ed25519.Sign(private, v.Message), v.Signature)
	case "ecdsa-p256":
		private, err := ecdh.P256().NewPrivateKey(v.scalar(sha256.New, 65))
		if err != nil {
			return err
		}
		public = private.PublicKey().Bytes()
		prefix = ecPrefix(0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7)
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), public)
		if err != nil {
			return err
		}
		digest := sha256.Sum256(v.Message)
		good = ecdsa.VerifyASN1(key, digest[:], der)
	case "sm2":
		private, err := sm2.NewPrivateKey(v.scalar(sm3.New, 66))
		if err != nil {
			return err
		}
		point, err := sm2.PublicKeyToECDH(&private.PublicKey)
		if err != nil {
			return err
		}
		public = point.Bytes()
		prefix = ecPrefix(0x2a, 0x81, 0x1c, 0xcf, 0x55, 1, 0x82, 0x2d)
		digest, err := sm2.CalculateSM2Hash(&private.PublicKey, v.Message, []byte("1234567812345678"))
		if err != nil {
			return err
		}
		good = sm2.VerifyASN1(&private.PublicKey, digest, der)
	}
	if !good {
		return errors.New("the signature is not valid")
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: slices.Concat(prefix, public)})
	return compare(step{"public key", public, v.PublicKey}, step{"PEM", text, []byte(v.PublicPEM)})
}

// ecPrefix is a SubjectPublicKeyInfo of id-ecPublicKey on the curve, up to the point.
func ecPrefix(curve ...byte) []byte {
	algorithm := slices.Concat([]byte{6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, byte(len(curve))}, curve)
	return slices.Concat([]byte{0x30, 0x59, 0x30, byte(len(algorithm))}, algorithm, []byte{3, 0x42, 0})
}

// imported opens an import's blob, as the machine does.
func (v *vector) imported() error {
	private, err := x509.ParsePKCS1PrivateKey(v.PrivateKey)
	if err != nil {
		return err
	}
	kek, err := rsa.DecryptOAEP(sha256.New(), nil, private, v.Blob[:384], nil)
	if err != nil {
		return err
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return err
	}
	w := bytes.Clone(v.Blob[384:]) // RFC 3394 section 2.2.2, with the initial value of RFC 5649
	n := uint64(len(w)/8 - 1)
	for t := 6 * n; t > 0; t-- {
		at := w[8*((t-1)%n+1):][:8]
		b := binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(w)^t)
		b = append(b, at...)
		block.Decrypt(b, b)
		copy(w, b[:8])
		copy(at, b[8:])
	}
	return compare(
		step{"key encryption key", kek, v.KEK}, step{"initial value", w[:8], []byte{0xa6, 0x59, 0x59, 0xa6, 0, 0, 0, 32}}, step{"key", w[8:], v.Key},
		step{"KCV", kcvOf(w[8:]), []byte(v.KCV)},
	)
}
