package p11_test

import (
	"crypto/aes"
	"crypto/cipher"
	"testing"
)

func gcmSeal(t *testing.T, key string, nonce []byte, plaintext, aad string) []byte {
	t.Helper()
	block, err := aes.NewCipher([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return aead.Seal(nil, nonce, []byte(plaintext), []byte(aad))
}
