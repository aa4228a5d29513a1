package alg

import (
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// kwpIV begins the alternative initial value of RFC 5649 section 3; the length of the
// key in 4 bytes follows.
const kwpIV = 0xa65959a6

// UnwrapKWP opens a key of len(dst) bytes that AES key wrap with padding (RFC 5649,
// NIST SP 800-38F KWP) has wrapped under kek. Whatever is wrong is fault.DecryptFailed,
// and then dst is zero. The length of dst is 9 bytes or more.
func UnwrapKWP(dst, kek, wrapped []byte) error {
	padded := (len(dst) + 7) / 8 * 8
	if padded < 16 || len(wrapped) != padded+8 {
		return fault.DecryptFailed
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return fault.DecryptFailed
	}
	defer secret.Erase(block)
	r := make([]byte, padded)
	defer clear(r)
	var b [aes.BlockSize]byte // A | R[i] of RFC 3394 section 2.2.2
	defer clear(b[:])
	copy(b[:8], wrapped)
	copy(r, wrapped[8:])
	n := padded / 8
	for t := 6 * n; t > 0; t-- {
		at := r[(t-1)%n*8:][:8]
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])^uint64(t))
		copy(b[8:], at)
		block.Decrypt(b[:], b[:])
		copy(at, b[8:])
	}
	var want [8]byte
	binary.BigEndian.PutUint32(want[:], kwpIV)
	binary.BigEndian.PutUint32(want[4:], uint32(len(dst)))
	same := subtle.ConstantTimeCompare(b[:8], want[:])
	same &= subtle.ConstantTimeCompare(r[len(dst):], make([]byte, padded-len(dst)))
	if same != 1 {
		clear(dst)
		return fault.DecryptFailed
	}
	copy(dst, r)
	return nil
}

// WrapKWP wraps a key of 9 bytes or more under kek by AES key wrap with padding (RFC
// 5649, NIST SP 800-38F KWP): the same key gives the same bytes each time.
func WrapKWP(kek, key []byte) ([]byte, error) {
	if len(key) < 9 {
		return nil, fault.New(fault.Internal, "AES key wrap with padding: a key of %d bytes", len(key))
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	defer secret.Erase(block)
	out := make([]byte, 8+(len(key)+7)/8*8)
	var b [aes.BlockSize]byte // A | R[i] of RFC 3394 section 2.2.1
	defer clear(b[:])
	binary.BigEndian.PutUint32(b[:8], kwpIV)
	binary.BigEndian.PutUint32(b[4:8], uint32(len(key)))
	copy(out[8:], key)
	n := len(out)/8 - 1
	for t := range 6 * n {
		at := out[8*(t%n+1):][:8]
		copy(b[8:], at)
		block.Encrypt(b[:], b[:])
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])^uint64(t+1))
		copy(at, b[8:])
	}
	copy(out, b[:8])
	return out, nil
}
