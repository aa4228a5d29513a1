package alg

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"

	"github.com/emmansun/gmsm/padding"
	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// cbcHMAC is encrypt-then-MAC as RFC 7518 section 5.2 composes it (and RFC 7366 orders
// it for TLS), with SM4 (GB/T 32907) for AES and HMAC-SM3 for HMAC-SHA-256:
//
//	IV  = SM4(nonce 12 | 0 0 0 0)      NIST SP 800-38A appendix C, first method
//	E   = SM4-CBC(IV, plaintext with PKCS#7 padding, RFC 5652 section 6.3)
//	tag = the first 16 bytes of HMAC-SM3(additional data | nonce 12 | E | bits of the additional data 8)
//
// The block that is encrypted to the IV is unique because the nonce is, and cannot
// be foretold because the nonce is random. The tag is checked before anything of E is
// decrypted: there is no padding to ask about.
type cbcHMAC struct {
	block  cipher.Block
	macKey []byte
}

const (
	macKeySize = sm3.Size // of the HMAC in suite 5
	tagSize    = 16       // of every suite
	nonceSize  = 12
)

// newCBC takes the encryption key 16 and the MAC key 32.
func newCBC(key []byte) (cipher.Block, cipher.AEAD, error) {
	block, err := sm4.NewCipher(key[:sm4.BlockSize])
	if err != nil {
		return nil, nil, err
	}
	return block, &cbcHMAC{block: block, macKey: append([]byte(nil), key[sm4.BlockSize:]...)}, nil
}

// NonceSize is that of every suite.
func (c *cbcHMAC) NonceSize() int { return nonceSize }

// Overhead is the most that a ciphertext has over its plaintext.
func (c *cbcHMAC) Overhead() int { return sm4.BlockSize + tagSize }

func (c *cbcHMAC) iv(nonce []byte) []byte {
	iv := make([]byte, sm4.BlockSize)
	copy(iv, nonce)
	c.block.Encrypt(iv, iv)
	return iv
}

func (c *cbcHMAC) tag(nonce, encrypted, aad []byte) []byte {
	return mac(sm3.New, c.macKey, aad, nonce, encrypted, binary.BigEndian.AppendUint64(nil, uint64(len(aad))*8))[:tagSize]
}

var pkcs7 = padding.NewPKCS7Padding(sm4.BlockSize)

// Seal appends E and the tag to dst.
func (c *cbcHMAC) Seal(dst, nonce, plaintext, aad []byte) []byte {
	start := len(dst)
	dst = append(dst, plaintext...)
	for pad, left := sm4.BlockSize-len(plaintext)%sm4.BlockSize, 0; left < pad; left++ {
		dst = append(dst, byte(pad))
	}
	encrypted := dst[start:]
	cipher.NewCBCEncrypter(c.block, c.iv(nonce)).CryptBlocks(encrypted, encrypted)
	return append(dst, c.tag(nonce, encrypted, aad)...)
}

// Open checks the tag, then appends the plaintext to dst.
func (c *cbcHMAC) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	end := len(sealed) - tagSize
	if end < sm4.BlockSize || end%sm4.BlockSize != 0 {
		return dst, fault.DecryptFailed
	}
	if subtle.ConstantTimeCompare(c.tag(nonce, sealed[:end], aad), sealed[end:]) != 1 {
		return dst, fault.DecryptFailed
	}
	start := len(dst)
	dst = append(dst, sealed[:end]...)
	opened := dst[start:]
	cipher.NewCBCDecrypter(c.block, c.iv(nonce)).CryptBlocks(opened, opened)
	plain, err := pkcs7.ConstantTimeUnpad(opened)
	if err != nil {
		clear(opened)
		return dst[:start], fault.DecryptFailed
	}
	return dst[:start+len(plain)], nil
}

func (c *cbcHMAC) erase() {
	clear(c.macKey)
	secret.Erase(c.block)
}
