package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strings"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"
	"golang.org/x/crypto/chacha20poly1305"
)

var errOpen = errors.New("the tag does not match")

// keySizes are the bytes of message keys, by suite.
var keySizes = map[byte]int{1: 32, 2: 16, 3: 32, 4: 16, 5: 48, 6: 64}

func newHash(suite byte) func() hash.Hash {
	if suite == 4 || suite == 5 {
		return sm3.New
	}
	return sha256.New
}

// ciphertext opens the text with the business key and the context, and finds each value on
// the way.
func (v *vector) ciphertext() error {
	encoded, ok := strings.CutPrefix(v.Text, "tk1.")
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || !ok || len(raw) < 54 || raw[0] != 1 {
		return fmt.Errorf("the text is no ciphertext: %w", err)
	}
	canonical := canonicalForm(v.Context)
	aad := slices.Concat(raw[:10], canonical)
	info := slices.Concat([]byte("trikey/v1/data"), raw[1:10])
	key := hkdf(newHash(raw[1]), v.BusinessKey, raw[10:26], info, keySizes[raw[1]])
	err = compare(
		step{"ciphertext", raw, v.Ciphertext}, step{"suite", raw[1:2], []byte{v.Suite}}, step{"header", raw[:38], v.Header},
		step{"index", raw[2:6], binary.BigEndian.AppendUint32(nil, v.Index)}, step{"version", raw[6:10], binary.BigEndian.AppendUint32(nil, v.KeyVersion)},
		step{"salt", raw[10:26], v.Salt}, step{"nonce", raw[26:38], v.Nonce}, step{"canonical context", canonical, v.Canonical},
		step{"additional data", aad, v.AAD}, step{"info", info, v.Info}, step{"message key", key, v.MessageKey},
		step{"KCV", kcvOf(v.BusinessKey), []byte(v.KCV)},
	)
	if err != nil {
		return err
	}
	plaintext, err := open(raw[1], key, raw[26:38], raw[38:], aad)
	if err != nil {
		return err
	}
	return compare(step{"plaintext", plaintext, v.Plaintext})
}

// resident opens a text of suite 97: the business key is the message key, and the salt is in
// the additional data.
func (v *vector) resident() error {
	encoded, ok := strings.CutPrefix(v.Text, "tk1.")
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || !ok || len(raw) < 54 || raw[0] != 1 || raw[1] != 97 {
		return fmt.Errorf("the text is no ciphertext of suite 97: %w", err)
	}
	canonical := canonicalForm(v.Context)
	aad := slices.Concat(raw[:26], canonical)
	err = compare(
		step{"ciphertext", raw, v.Ciphertext}, step{"suite", raw[1:2], []byte{v.Suite}}, step{"header", raw[:38], v.Header},
		step{"index", raw[2:6], binary.BigEndian.AppendUint32(nil, v.Index)}, step{"version", raw[6:10], binary.BigEndian.AppendUint32(nil, v.KeyVersion)},
		step{"salt", raw[10:26], v.Salt}, step{"nonce", raw[26:38], v.Nonce}, step{"canonical context", canonical, v.Canonical}, step{"additional data", aad, v.AAD},
	)
	if err != nil {
		return err
	}
	plaintext, err := open(1, v.BusinessKey, raw[26:38], raw[38:], aad) // as suite 1
	if err != nil {
		return err
	}
	return compare(step{"plaintext", plaintext, v.Plaintext})
}

func (v *vector) context() error {
	if !v.Valid {
		return compare(step{"canonical form", nil, v.CanonicalOfValid})
	}
	return compare(step{"canonical form", canonicalForm(v.Context), v.CanonicalOfValid})
}

func (v *vector) kcv() error {
	derived := hkdf(sha256.New, v.Key, nil, []byte("trikey/v1/kcv"), 32)
	return compare(
		step{"info", []byte("trikey/v1/kcv"), v.Info}, step{"derived key", derived, v.Derived},
		step{"CMAC", cmac(derived, make([]byte, 16)), v.CMAC}, step{"KCV", kcvOf(v.Key), []byte(v.KCV)},
	)
}

func canonicalForm(context map[string]string) []byte {
	out := []byte("trikey/v1/context")
	for _, name := range slices.Sorted(maps.Keys(context)) {
		for _, s := range []string{name, context[name]} {
			out = append(binary.BigEndian.AppendUint32(out, uint32(len(s))), s...)
		}
	}
	return out
}

func hmacOf(newHash func() hash.Hash, key []byte, parts ...[]byte) []byte {
	m := hmac.New(newHash, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

// hkdf is HKDF (RFC 5869).
func hkdf(newHash func() hash.Hash, secret, salt, info []byte, size int) []byte {
	if salt == nil {
		salt = make([]byte, 32)
	}
	prk := hmacOf(newHash, salt, secret)
	var out, block []byte
	for i := byte(1); len(out) < size; i++ {
		block = hmacOf(newHash, prk, block, info, []byte{i})
		out = append(out, block...)
	}
	return out[:size]
}

func kcvOf(key []byte) []byte {
	sum := cmac(hkdf(sha256.New, key, nil, []byte("trikey/v1/kcv"), 32), make([]byte, 16))
	return []byte("cmac-aes:" + hex.EncodeToString(sum[:3]))
}

// open opens ciphertext and tag.
func open(suite byte, key, nonce, sealed, aad []byte) ([]byte, error) {
	switch suite {
	case 5:
		return openCBC(key, nonce, sealed, aad)
	case 6:
		return openSIV(key, nonce, sealed, aad)
	}
	aead, err := newAEAD(suite, key)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nonce, sealed, aad)
}

// newAEAD returns the cipher of one of the suites 1 to 4.
func newAEAD(suite byte, key []byte) (cipher.AEAD, error) {
	if suite == 3 {
		return chacha20poly1305.New(key)
	}
	newBlock := aes.NewCipher
	if suite == 4 {
		newBlock = sm4.NewCipher
	}
	block, err := newBlock(key)
	if err != nil {
		return nil, err
	}
	if suite == 4 { // hide the library's own GCM: the standard library's is a second opinion
		block = struct{ cipher.Block }{block}
	}
	return cipher.NewGCM(block)
}

// openCBC is suite 5: key = SM4 key 16 | HMAC key 32.
func openCBC(key, nonce, sealed, aad []byte) ([]byte, error) {
	body, tag := sealed[:len(sealed)-16], sealed[len(sealed)-16:]
	if want := hmacOf(sm3.New, key[16:], aad, nonce, body, binary.BigEndian.AppendUint64(nil, 8*uint64(len(aad)))); !hmac.Equal(want[:16], tag) {
		return nil, errOpen
	}
	block, err := sm4.NewCipher(key[:16])
	if err != nil {
		return nil, err
	}
	iv := append(bytes.Clone(nonce), 0, 0, 0, 0)
	block.Encrypt(iv, iv)
	plain := make([]byte, len(body))
	cipher.NewCBCDecrypter(struct{ cipher.Block }{block}, iv).CryptBlocks(plain, body)
	pad := int(plain[len(plain)-1])
	if pad < 1 || pad > 16 || !bytes.Equal(plain[len(plain)-pad:], bytes.Repeat([]byte{byte(pad)}, pad)) {
		return nil, errors.New("the padding is not PKCS#7")
	}
	return plain[:len(plain)-pad], nil
}

// openSIV is suite 6: AES-SIV (RFC 5297) with the components additional data and nonce, and
// the synthetic IV last.
func openSIV(key, nonce, sealed, aad []byte) ([]byte, error) {
	body, v := sealed[:len(sealed)-16], sealed[len(sealed)-16:]
	block, err := aes.NewCipher(key[32:])
	if err != nil {
		return nil, err
	}
	q := bytes.Clone(v)
	q[8] &= 0x7f
	q[12] &= 0x7f
	plain := make([]byte, len(body))
	cipher.NewCTR(block, q).XORKeyStream(plain, body)
	d := cmac(key[:32], make([]byte, 16))
	for _, component := range [][]byte{aad, nonce} {
		d = xor(double(d), cmac(key[:32], component))
	}
	last := bytes.Clone(plain)
	if n := len(plain) - 16; n >= 0 {
		copy(last[n:], xor(plain[n:], d))
	} else {
		padded := make([]byte, 16)
		copy(padded, append(last, 0x80))
		last = xor(double(d), padded)
	}
	if !hmac.Equal(cmac(key[:32], last), v) {
		return nil, errOpen
	}
	return plain, nil
}

// cmac is AES-CMAC (NIST SP 800-38B).
func cmac(key, message []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // a key of 32 bytes is one
	}
	sub := make([]byte, 16)
	block.Encrypt(sub, sub)
	sub = double(sub)
	message = bytes.Clone(message)
	if len(message) == 0 || len(message)%16 != 0 {
		sub = double(sub)
		message = append(message, 0x80)
		message = append(message, make([]byte, -len(message)&15)...)
	}
	copy(message[len(message)-16:], xor(message[len(message)-16:], sub))
	sum := make([]byte, 16)
	for ; len(message) > 0; message = message[16:] {
		block.Encrypt(sum, xor(sum, message[:16]))
	}
	return sum
}

func double(b []byte) []byte {
	out := make([]byte, 16)
	for i := range out {
		out[i] = b[i] << 1
		if i < 15 {
			out[i] |= b[i+1] >> 7
		}
	}
	if b[0]&0x80 != 0 {
		out[15] ^= 0x87
	}
	return out
}

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	for i := range a {
		out[i] = a[i] ^ b[i]
	}
	return out
}
