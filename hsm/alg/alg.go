// Package alg is the table of Trikey's algorithms: the suites that seal data, the
// derivation of their message keys, codes and signatures, and the key check value.
//
// Every construction is a named standard from a kept library: AES-GCM (NIST SP
// 800-38D), HKDF's HMAC-SHA-256 (RFC 5869, RFC 2104), Ed25519 (RFC 8032) and ECDSA
// (FIPS 186-5) from the Go standard library, ChaCha20-Poly1305 (RFC 8439) from
// golang.org/x/crypto, SM4-GCM (GB/T 32907, RFC 8998), SM4-CBC (GB/T 17964), SM3
// (GB/T 32905), SM2 (GB/T 32918) and CMAC (NIST SP 800-38B) from emmansun/gmsm.
// Three are put together here from those: encrypt-then-MAC as in RFC 7518 (cbc.go),
// AES-SIV (RFC 5297, siv.go) and AES key wrap with padding (RFC 5649, kwp.go).
// SelfTest runs known answers through all of them.
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
	"slices"
	"strings"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// ID is an algorithm's number: of a suite, the second byte of a ciphertext.
type ID byte

// The suites, which seal; then what computes codes; then what signs.
const (
	AES256GCM        ID = 1 // the default
	AES128GCM        ID = 2
	ChaCha20Poly1305 ID = 3
	SM4GCM           ID = 4
	SM4CBCHMAC       ID = 5 // encrypt-then-MAC
	AES256SIV        ID = 6 // deterministic

	HMACSHA256 ID = 32
	HMACSM3    ID = 33

	Ed25519   ID = 64
	ECDSAP256 ID = 65
	SM2       ID = 66
)

// Class is what an algorithm does. A business key is made for one class.
type Class uint8

// The classes.
const (
	Sealing        Class = iota + 1 // authenticated encryption with a random nonce
	Deterministic                   // authenticated encryption without one
	Authentication                  // message authentication codes
	Signature                       // digital signatures
)

// Algorithm describes an algorithm.
type Algorithm struct {
	Name  string
	Class Class

	KeySize int              // of a suite: bytes of a message key
	Hash    func() hash.Hash // of the HKDF that derives keys; of a MAC, its own
	Padding int              // of a suite: the most bytes that it pads a plaintext with

	build func(key []byte) (cipher.Block, cipher.AEAD, error) // of a suite
	sign  *signer                                             // of a signature
}

// table has each algorithm at its number.
var table = [...]Algorithm{
	AES256GCM:        {Name: "aes-256-gcm", Class: Sealing, KeySize: 32, Hash: sha256.New, build: gcm(aes.NewCipher)},
	AES128GCM:        {Name: "aes-128-gcm", Class: Sealing, KeySize: 16, Hash: sha256.New, build: gcm(aes.NewCipher)},
	ChaCha20Poly1305: {Name: "chacha20-poly1305", Class: Sealing, KeySize: chacha20poly1305.KeySize, Hash: sha256.New, build: chacha},
	SM4GCM:           {Name: "sm4-gcm", Class: Sealing, KeySize: 16, Hash: sm3.New, build: gcm(sm4.NewCipher)},
	SM4CBCHMAC:       {Name: "sm4-cbc-hmac-sm3", Class: Sealing, KeySize: sm4.BlockSize + macKeySize, Hash: sm3.New, Padding: sm4.BlockSize, build: newCBC},
	AES256SIV:        {Name: "aes-256-siv", Class: Deterministic, KeySize: 64, Hash: sha256.New, build: newSIV},
	HMACSHA256:       {Name: "hmac-sha256", Class: Authentication, Hash: sha256.New},
	HMACSM3:          {Name: "hmac-sm3", Class: Authentication, Hash: sm3.New},
	Ed25519:          {Name: "ed25519", Class: Signature, sign: &signEd25519},
	ECDSAP256:        {Name: "ecdsa-p256", Class: Signature, Hash: sha256.New, sign: &signECDSA},
	SM2:              {Name: "sm2", Class: Signature, Hash: sm3.New, sign: &signSM2},
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

// Lookup returns the algorithm of that number.
func Lookup(id ID) (*Algorithm, error) {
	if id == AES256GCMResident {
		return nil, ErrResident
	}
	if int(id) >= len(table) || table[id].Class == 0 {
		return nil, fault.New(fault.AlgorithmNotAllowed, "algorithm: there is no algorithm of the number %d", id)
	}
	return &table[id], nil
}

// Suite returns the suite of that number: an algorithm that seals.
func Suite(id ID) (*Algorithm, error) {
	a, err := Lookup(id)
	if err == nil && a.build == nil {
		err = fault.New(fault.AlgorithmNotAllowed, "algorithm: %s does not encrypt", a.Name)
	}
	return a, err
}

// ByName returns the algorithm of that name.
func ByName(name string) (ID, error) {
	if name == residentName {
		return AES256GCMResident, nil
	}
	for i := range table {
		if table[i].Class != 0 && table[i].Name == name {
			return ID(i), nil
		}
	}
	return 0, fault.New(fault.BadRequest, "algorithm: unknown %q; known: %s", name, strings.Join(Names(), ", "))
}

// Names returns the names of the table's algorithms of some classes, of all when none is
// given.
func Names(classes ...Class) []string {
	var names []string
	for i := range table {
		if c := table[i].Class; c != 0 && (len(classes) == 0 || slices.Contains(classes, c)) {
			names = append(names, table[i].Name)
		}
	}
	return names
}

// String returns the algorithm's name.
func (id ID) String() string {
	if id == AES256GCMResident {
		return residentName
	}
	if a, err := Lookup(id); err == nil {
		return a.Name
	}
	return fmt.Sprintf("algorithm(%d)", byte(id))
}

// MarshalText returns the algorithm's name.
func (id ID) MarshalText() ([]byte, error) {
	if _, err := Lookup(id); err != nil && id != AES256GCMResident {
		return nil, err
	}
	return []byte(id.String()), nil
}

// UnmarshalText parses an algorithm's name.
func (id *ID) UnmarshalText(text []byte) (err error) {
	*id, err = ByName(string(text))
	return err
}

// Cipher is a suite with a key. It is meant for one call: build it from a page
// of protected memory, use it, erase it. It is used by one goroutine at a time.
type Cipher struct {
	block cipher.Block // nil for a suite without one
	aead  cipher.AEAD
}

// NewCipher builds the cipher of a suite. The key is of the suite's KeySize.
func NewCipher(id ID, key []byte) (Cipher, error) {
	a, err := Suite(id)
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
// drawn from the kernel by the engine for this one message, and zero for a
// deterministic suite.
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
	if made, ok := c.aead.(interface{ erase() }); ok { // of this package, from several ciphers
		made.erase()
	}
	secret.Erase(c.aead)
	if c.block != nil {
		secret.Erase(c.block)
	}
}
