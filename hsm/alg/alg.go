// Package alg is the table of Trikey's algorithms: the suites that seal data, the
// derivation of their message keys, and the key check value.
//
// Every construction is a named standard from a kept library: AES-GCM (NIST SP
// 800-38D) and HKDF's HMAC-SHA-256 (RFC 5869, RFC 2104) from the Go standard
// library, ChaCha20-Poly1305 (RFC 8439) from golang.org/x/crypto, SM4-GCM (GB/T
// 32907, RFC 8998), SM3 (GB/T 32905) and CMAC (NIST SP 800-38B) from
// emmansun/gmsm. SelfTest runs known answers through all of them.
//
// Libraries keep keys on the ordinary heap, in ciphers and hashes. What this
// package builds from a key it erases before it returns, or, for a Cipher, when
// Erase is called.
package alg

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"fmt"
	"hash"
	"strings"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// ID is a suite's number, the second byte of a ciphertext.
type ID byte

// The suites.
const (
	AES256GCM        ID = 1 // the default
	AES128GCM        ID = 2
	ChaCha20Poly1305 ID = 3
	SM4GCM           ID = 4
)

// Algorithm describes a suite.
type Algorithm struct {
	ID      ID
	Name    string
	KeySize int              // bytes of a message key
	Hash    func() hash.Hash // of the HKDF that derives message keys
	build   func(key []byte) (cipher.Block, cipher.AEAD, error)
}

// table is ordered by ID, from 1.
var table = [...]Algorithm{
	{AES256GCM, "aes-256-gcm", 32, sha256.New, gcm(aes.NewCipher)},
	{AES128GCM, "aes-128-gcm", 16, sha256.New, gcm(aes.NewCipher)},
	{ChaCha20Poly1305, "chacha20-poly1305", chacha20poly1305.KeySize, sha256.New, chacha},
	{SM4GCM, "sm4-gcm", 16, sm3.New, gcm(sm4.NewCipher)},
}

func gcm(newBlock func([]byte) (cipher.Block, error)) func([]byte) (cipher.Block, cipher.AEAD, error) {
	return func(key []byte) (cipher.Block, cipher.AEAD, error) {
		block, err := newBlock(key)
		if err != nil {
			return nil, nil, err
		}
		aead, err := cipher.NewGCM(block)
		return block, aead, err
	}
}

func chacha(key []byte) (cipher.Block, cipher.AEAD, error) {
	aead, err := chacha20poly1305.New(key)
	return nil, aead, err
}

// Lookup returns the suite of that number.
func Lookup(id ID) (*Algorithm, error) {
	if id == AES256GCMResident {
		return nil, ErrResident
	}
	if id < 1 || int(id) > len(table) {
		return nil, fault.New(fault.AlgorithmNotAllowed, "algorithm: there is no suite %d", id)
	}
	return &table[id-1], nil
}

// ByName returns the suite of that name.
func ByName(name string) (ID, error) {
	if name == residentName {
		return AES256GCMResident, nil
	}
	for i := range table {
		if table[i].Name == name {
			return table[i].ID, nil
		}
	}
	return 0, fault.New(fault.BadRequest, "algorithm: unknown %q; known: %s", name, strings.Join(Names(), ", "))
}

// Names returns the names of all suites of the table.
func Names() []string {
	names := make([]string, len(table))
	for i := range table {
		names[i] = table[i].Name
	}
	return names
}

// String returns the suite's name.
func (id ID) String() string {
	if id == AES256GCMResident {
		return residentName
	}
	if a, err := Lookup(id); err == nil {
		return a.Name
	}
	return fmt.Sprintf("suite(%d)", byte(id))
}

// MarshalText returns the suite's name.
func (id ID) MarshalText() ([]byte, error) {
	if _, err := Lookup(id); err != nil && id != AES256GCMResident {
		return nil, err
	}
	return []byte(id.String()), nil
}

// UnmarshalText parses a suite's name.
func (id *ID) UnmarshalText(text []byte) (err error) {
	*id, err = ByName(string(text))
	return err
}

// Cipher is a suite with a key. It is meant for one call: build it from a page
// of protected memory, use it, erase it.
type Cipher struct {
	block cipher.Block // nil for a suite without one
	aead  cipher.AEAD
}

// NewCipher builds the cipher of a suite. The key is of the suite's KeySize.
func NewCipher(id ID, key []byte) (Cipher, error) {
	a, err := Lookup(id)
	if err != nil {
		return Cipher{}, err
	}
	if len(key) != a.KeySize {
		return Cipher{}, fault.New(fault.Internal, "%s takes a key of %d bytes, not %d", a.Name, a.KeySize, len(key))
	}
	block, aead, err := a.build(key)
	return Cipher{block, aead}, err
}

// Seal appends the ciphertext and its 16-byte tag to dst. The nonce is 12 bytes,
// drawn from the kernel by the engine for this one message.
func (c Cipher) Seal(dst, nonce, plaintext, aad []byte) []byte {
	return c.aead.Seal(dst, nonce, plaintext, aad)
}

// Open appends the plaintext to dst. When the tag does not match it returns
// fault.DecryptFailed.
func (c Cipher) Open(dst, nonce, ciphertext, aad []byte) ([]byte, error) {
	out, err := c.aead.Open(dst, nonce, ciphertext, aad)
	if err != nil {
		return dst, fault.DecryptFailed
	}
	return out, nil
}

// Erase zeroes the key schedules. The cipher must not be used afterwards.
func (c Cipher) Erase() {
	secret.Erase(c.aead)
	if c.block != nil {
		secret.Erase(c.block)
	}
}
