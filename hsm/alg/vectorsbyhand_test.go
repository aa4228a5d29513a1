package alg_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"
	"golang.org/x/crypto/chacha20poly1305"
)

// What is in this file is written from docs/format.md alone, with nothing of the product:
// a second reading of every vector.

// A decoder opens every ciphertext from its business key, context and text, and
// finds every value on the way where the vector says it is.
func TestGoldenByHand(t *testing.T) {
	for _, g := range readVectors[golden](t, goldenFile, 20) {
		encoded, ok := strings.CutPrefix(g.Text, "tk1.")
		raw, err := base64.RawURLEncoding.DecodeString(encoded)
		if err != nil || !ok {
			t.Fatal(g.Text, err)
		}
		canonical := canonicalByHand(g.Context)
		aad := append(bytes.Clone(raw[:10]), canonical...)
		info := append([]byte("trikey/v1/data"), raw[1:10]...)
		messageKey := messageKeyByHand(raw[1], g.BusinessKey, raw[10:26], info)
		for what, same := range map[string]bool{
			"ciphertext": bytes.Equal(raw, g.Ciphertext), "header": bytes.Equal(raw[:38], g.Header),
			"salt": bytes.Equal(raw[10:26], g.Salt), "nonce": bytes.Equal(raw[26:38], g.Nonce),
			"canonical context": bytes.Equal(canonical, g.CanonicalContext), "AAD": bytes.Equal(aad, g.AAD),
			"info": bytes.Equal(info, g.Info), "message key": bytes.Equal(messageKey, g.MessageKey),
			"KCV": "cmac-aes:"+hex.EncodeToString(cmacByHand(t, kcvKeyByHand(g.BusinessKey))[:3]) == g.KCV,
		} {
			if !same {
				t.Errorf("%s, %s: another %s", g.Algorithm, g.Name, what)
			}
		}
		aead, err := aeadByHand(raw[1], messageKey)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := aead.Open(nil, raw[26:38], raw[38:], aad)
		if err != nil || !bytes.Equal(opened, g.Plaintext) {
			t.Errorf("%s, %s: %v", g.Algorithm, g.Name, err)
		}
	}
}

func TestGoldenContextByHand(t *testing.T) {
	for _, v := range readVectors[contextVector](t, contextFile, 18) {
		if v.Valid && !bytes.Equal(canonicalByHand(v.Context), v.Canonical) {
			t.Errorf("%s: %x, want %x", v.Name, canonicalByHand(v.Context), v.Canonical)
		}
	}
}

func TestGoldenKCVByHand(t *testing.T) {
	for _, v := range readVectors[kcvVector](t, kcvFile, 5) {
		derived := kcvKeyByHand(v.Key)
		sum := cmacByHand(t, derived)
		if !bytes.Equal(derived, v.Derived) || !bytes.Equal(sum, v.CMAC) || v.KCV != "cmac-aes:"+hex.EncodeToString(sum[:3]) {
			t.Errorf("%s: %x, %x, want %+v", v.Name, derived, sum, v)
		}
	}
}

func canonicalByHand(context map[string]string) []byte {
	out := []byte("trikey/v1/context")
	for _, name := range slices.Sorted(maps.Keys(context)) {
		for _, s := range []string{name, context[name]} {
			n := len(s)
			out = append(append(out, byte(n>>24), byte(n>>16), byte(n>>8), byte(n)), s...)
		}
	}
	return out
}

func hmacByHand(newHash func() hash.Hash, key, message []byte) []byte {
	m := hmac.New(newHash, key)
	m.Write(message)
	return m.Sum(nil)
}

// messageKeyByHand is HKDF whose output is no longer than the hash's: one block.
func messageKeyByHand(suite byte, key, salt, info []byte) []byte {
	newHash, size := sha256.New, 32
	if suite == 4 {
		newHash = sm3.New
	}
	if suite == 2 || suite == 4 {
		size = 16
	}
	return hmacByHand(newHash, hmacByHand(newHash, salt, key), append(bytes.Clone(info), 1))[:size]
}

func kcvKeyByHand(key []byte) []byte {
	return hmacByHand(sha256.New, hmacByHand(sha256.New, make([]byte, 32), key), []byte("trikey/v1/kcv\x01"))
}

// cmacByHand is the CMAC of sixteen zero bytes: a whole block, so that it is the
// encryption of the first subkey.
func cmacByHand(t *testing.T, key []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	l, k1 := make([]byte, 16), make([]byte, 16)
	block.Encrypt(l, l)
	for i := range k1 {
		k1[i] = l[i] << 1
		if i < 15 {
			k1[i] |= l[i+1] >> 7
		}
	}
	if l[0]&0x80 != 0 {
		k1[15] ^= 0x87
	}
	block.Encrypt(k1, k1)
	return k1
}

func aeadByHand(suite byte, messageKey []byte) (cipher.AEAD, error) {
	if suite == 3 {
		return chacha20poly1305.New(messageKey)
	}
	newBlock := aes.NewCipher
	if suite == 4 {
		newBlock = sm4.NewCipher
	}
	block, err := newBlock(messageKey)
	if err != nil {
		return nil, err
	}
	if suite == 4 {
		// Hide the library's own GCM: the standard library's is a second opinion.
		block = struct{ cipher.Block }{block}
	}
	return cipher.NewGCM(block)
}
