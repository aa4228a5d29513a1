package alg

import (
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"

	"github.com/emmansun/gmsm/cbcmac"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

const (
	messageInfo = "trikey/v1/data"
	streamInfo  = "trikey/v1/stream"
	kcvInfo     = "trikey/v1/kcv"
)

// AppendInfo appends the HKDF info of a message key to dst: "trikey/v1/data" |
// suite 1 | key index 4 | key version 4.
func (id ID) AppendInfo(dst []byte, index, version uint32) []byte {
	return id.appendInfo(dst, messageInfo, index, version)
}

// AppendStreamInfo appends the HKDF info of a stream's key to dst:
// "trikey/v1/stream" | suite 1 | key index 4 | key version 4.
func (id ID) AppendStreamInfo(dst []byte, index, version uint32) []byte {
	return id.appendInfo(dst, streamInfo, index, version)
}

func (id ID) appendInfo(dst []byte, use string, index, version uint32) []byte {
	dst = append(append(dst, use...), byte(id))
	dst = binary.BigEndian.AppendUint32(dst, index)
	return binary.BigEndian.AppendUint32(dst, version)
}

// MessageKey derives the key that a suite seals messages with, under a salt, from
// a version of a business key. dst is as long as the suite's KeySize.
func (id ID) MessageKey(dst, businessKey, salt []byte, index, version uint32) error {
	return id.derive(dst, messageInfo, businessKey, salt, index, version)
}

// StreamKey derives the key that a suite seals the segments of one stream with. The
// salt is that stream's alone.
func (id ID) StreamKey(dst, businessKey, salt []byte, index, version uint32) error {
	return id.derive(dst, streamInfo, businessKey, salt, index, version)
}

func (id ID) derive(dst []byte, use string, businessKey, salt []byte, index, version uint32) error {
	a, err := Suite(id)
	if err != nil {
		return err
	}
	if len(dst) != a.KeySize {
		return fault.New(fault.Internal, "%s takes a key of %d bytes, not %d", a.Name, a.KeySize, len(dst))
	}
	var info [len(streamInfo) + 9]byte // the longest
	return HKDF(a.Hash, dst, businessKey, salt, id.appendInfo(info[:0], use, index, version))
}

// HKDF fills dst with HKDF (RFC 5869) of the secret, and erases what the
// derivation left on the heap. crypto/hkdf computes the same, but leaves the
// secret in the buffers of its hashes.
func HKDF(newHash func() hash.Hash, dst, ikm, salt, info []byte) error {
	if len(dst) > 255*newHash().Size() {
		return fault.New(fault.Internal, "HKDF: %d bytes are more than it can give", len(dst))
	}
	prk := mac(newHash, salt, ikm)
	defer clear(prk)
	var block []byte
	for counter := byte(1); len(dst) > 0; counter++ {
		next := mac(newHash, prk, block, info, []byte{counter})
		clear(block)
		block = next
		dst = dst[copy(dst, block):]
	}
	clear(block)
	return nil
}

// mac returns the HMAC (RFC 2104) of the parts, and erases the hashes and pads
// that it was made with.
func mac(newHash func() hash.Hash, key []byte, parts ...[]byte) []byte {
	var made [2]hash.Hash
	n := 0
	m := hmac.New(func() hash.Hash {
		h := newHash()
		made[n%len(made)] = h
		n++
		return h
	}, key)
	for _, p := range parts {
		m.Write(p)
	}
	sum := m.Sum(nil)
	secret.Erase(m)
	for _, h := range made {
		secret.Erase(h)
	}
	return sum
}

// KCV returns the key check value of a key: the first three bytes of the
// AES-CMAC (NIST SP 800-38B) of a zero block, under a key derived from it for
// nothing else, with the method's name in front: cmac-aes:763cbc.
func KCV(key []byte) (string, error) {
	derived := make([]byte, 32)
	defer clear(derived)
	if err := HKDF(sha256.New, derived, key, nil, []byte(kcvInfo)); err != nil {
		return "", err
	}
	sum, err := cmac(derived, make([]byte, aes.BlockSize))
	if err != nil {
		return "", err
	}
	defer clear(sum) // the other 13 bytes would confirm a guess of the key
	return "cmac-aes:" + hex.EncodeToString(sum[:3]), nil
}

func cmac(key, message []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	defer secret.Erase(block)
	m := cbcmac.NewCMAC(block, aes.BlockSize)
	defer secret.Erase(m)
	return m.MAC(message), nil
}
