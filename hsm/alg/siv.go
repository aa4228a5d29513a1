package alg

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"

	"github.com/emmansun/gmsm/cbcmac"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// siv is AES-SIV (RFC 5297), as AEAD_AES_SIV_CMAC_512 of its section 6 when the key
// has 64 bytes: associated data and nonce are the vector in front of the plaintext.
// The synthetic IV stands where the tags of all suites stand, behind the ciphertext.
type siv struct{ macBlock, ctrBlock cipher.Block }

// newSIV takes the S2V key and the CTR key, each half of key.
func newSIV(key []byte) (cipher.Block, cipher.AEAD, error) {
	half := len(key) / 2
	macBlock, err := aes.NewCipher(key[:half])
	if err != nil {
		return nil, nil, err
	}
	ctrBlock, err := aes.NewCipher(key[half:])
	if err != nil {
		return nil, nil, err
	}
	return nil, &siv{macBlock, ctrBlock}, nil
}

// NonceSize is that of every suite.
func (s *siv) NonceSize() int { return nonceSize }

// Overhead is the synthetic IV.
func (s *siv) Overhead() int { return tagSize }

// Seal appends the ciphertext and the synthetic IV to dst.
func (s *siv) Seal(dst, nonce, plaintext, aad []byte) []byte {
	v := s.s2v(plaintext, aad, nonce)
	start := len(dst)
	dst = append(dst, plaintext...)
	s.xor(dst[start:], v)
	return append(dst, v...)
}

// Open appends the plaintext to dst. What does not match its synthetic IV is cleared.
func (s *siv) Open(dst, nonce, sealed, aad []byte) ([]byte, error) {
	end := len(sealed) - tagSize
	if end < 0 {
		return dst, fault.DecryptFailed
	}
	start := len(dst)
	dst = append(dst, sealed[:end]...)
	s.xor(dst[start:], sealed[end:])
	if subtle.ConstantTimeCompare(s.s2v(dst[start:], aad, nonce), sealed[end:]) != 1 {
		clear(dst[start:])
		return dst[:start], fault.DecryptFailed
	}
	return dst, nil
}

// xor is AES-CTR from the synthetic IV with two bits cleared (section 2.5). The block is
// hidden from the standard library, whose own counter mode would copy the key schedule
// to a place that cannot be erased.
func (s *siv) xor(text, v []byte) {
	var q [aes.BlockSize]byte
	copy(q[:], v)
	q[8] &= 0x7f
	q[12] &= 0x7f
	stream := cipher.NewCTR(struct{ cipher.Block }{s.ctrBlock}, q[:])
	stream.XORKeyStream(text, text)
	secret.Erase(stream)
}

// s2v is S2V (section 2.4) of the components and, last, the plaintext.
func (s *siv) s2v(plaintext []byte, components ...[]byte) []byte {
	d := s.cmac(make([]byte, aes.BlockSize))
	for _, c := range components {
		double(d)
		subtle.XORBytes(d, d, s.cmac(c))
	}
	n := len(plaintext) - aes.BlockSize
	if n < 0 {
		double(d)
		subtle.XORBytes(d, d, plaintext)
		d[len(plaintext)] ^= 0x80
		defer clear(d)
		return s.cmac(d)
	}
	end := append([]byte(nil), plaintext...)
	defer clear(end)
	subtle.XORBytes(end[n:], end[n:], d)
	return s.cmac(end)
}

// cmac is AES-CMAC (NIST SP 800-38B) of one message. The library's object is made anew for
// each, and fed once: it keeps bytes of what it was fed before, and counts them in.
func (s *siv) cmac(message []byte) []byte {
	m := cbcmac.NewCMAC(s.macBlock, aes.BlockSize)
	defer secret.Erase(m)
	return m.MAC(message)
}

// double multiplies by x in GF(2^128), in constant time (section 2.3).
func double(d []byte) {
	carry := d[0] >> 7
	for i := range len(d) - 1 {
		d[i] = d[i]<<1 | d[i+1]>>7
	}
	d[len(d)-1] = d[len(d)-1]<<1 ^ carry*0x87
}

func (s *siv) erase() {
	secret.Erase(s.macBlock)
	secret.Erase(s.ctrBlock)
}
