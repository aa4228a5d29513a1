package resident_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"testing"

	"github.com/emmansun/gmsm/cbcmac"

	"github.com/trikey/trikey/hsm"
)

// derivedByHand is docs/format.md, "From the root key".
func derivedByHand(t *testing.T, root hsm.Root, use string) []byte {
	t.Helper()
	var key []byte
	err := root.Key.Use(func(k []byte) (err error) {
		info := binary.BigEndian.AppendUint32([]byte(use), root.Generation)
		key, err = hkdf.Key(sha256.New, k, nil, string(info), 32)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// unwrapByHand checks a wrapped key's tag and undoes RFC 3394, section 2.2.2.
func unwrapByHand(t *testing.T, root hsm.Root, w hsm.WrappedKey) []byte {
	t.Helper()
	m := hmac.New(sha256.New, derivedByHand(t, root, "trikey/v1/bind"))
	m.Write([]byte(w[:len(w)-32]))
	if w[1] != hsm.WrapKW || string(m.Sum(nil)) != string(w[len(w)-32:]) {
		t.Fatalf("wrap suite %d, or another tag", w[1])
	}
	block, err := aes.NewCipher(derivedByHand(t, root, "trikey/v1/wrap-kw"))
	if err != nil {
		t.Fatal(err)
	}
	r := []byte(w[len(w)-72 : len(w)-32]) // A | R1 … R4
	var b [16]byte
	for j := 5; j >= 0; j-- {
		for i := 4; i >= 1; i-- {
			binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(r)^uint64(4*j+i))
			copy(b[8:], r[8*i:])
			block.Decrypt(b[:], b[:])
			copy(r, b[:8])
			copy(r[8*i:8*i+8], b[8:])
		}
	}
	if hex.EncodeToString(r[:8]) != "a6a6a6a6a6a6a6a6" {
		t.Fatal("AES key wrap's integrity check fails")
	}
	return r[8:]
}

func gcmByHand(t *testing.T, key []byte) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return aead
}

func cmacByHand(t *testing.T, key []byte) string {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(cbcmac.NewCMAC(block, 16).MAC(make([]byte, 16)))
}
