package hsmtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"

	"github.com/emmansun/gmsm/sm2"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

// testPurposes: a key serves its own purpose, and is refused for every other.
func testPurposes(t *testing.T, m *machine) {
	keys := map[hsm.Purpose]hsm.WrappedKey{}
	for _, p := range hostSuites.purposes {
		if !m.has(p) {
			if _, err := m.GenerateKey(t.Context(), hsm.Binding{Index: 7, Version: 1, Algorithm: p.Usual(), Purpose: p}); !errors.Is(err, fault.AlgorithmNotAllowed) {
				t.Errorf("a key for %s: %v", p, err)
			}
			continue
		}
		keys[p] = m.keyFor(p, 7, 1, p.Usual())
		if h, err := keys[p].Header(); err != nil || h.Purpose != p || h.Algorithm != p.Usual() {
			t.Errorf("%s: %+v, %v", p, h, err)
		}
	}
	sealed := m.must(hsm.Op{Kind: hsm.Encrypt, Key: keys[hsm.PurposeSeal], Input: []byte("x")})
	allowed := map[hsm.Kind][]hsm.Purpose{
		hsm.Encrypt: {hsm.PurposeSeal, hsm.PurposeDeterministic}, hsm.Decrypt: {hsm.PurposeSeal}, hsm.DataKey: {hsm.PurposeSeal},
		hsm.Mac: {hsm.PurposeMAC}, hsm.VerifyMac: {hsm.PurposeMAC},
		hsm.Sign: {hsm.PurposeSign}, hsm.Verify: {hsm.PurposeSign}, hsm.PublicKey: {hsm.PurposeSign},
	}
	for kind, purposes := range allowed {
		for p, key := range keys {
			op := hsm.Op{Kind: kind, Key: key, Input: []byte("x"), Size: 32}
			if kind == hsm.Decrypt {
				op.Input = sealed
			}
			_, err := m.do(op)
			var want error
			switch {
			case kind == hsm.Decrypt && p == hsm.PurposeDeterministic: // another suite's ciphertext
				want = fault.DecryptFailed
			case !bytes.Contains(purposeBytes(purposes), []byte{byte(p)}):
				want = fault.AlgorithmNotAllowed
			case kind == hsm.VerifyMac || kind == hsm.Verify:
				want = fault.SignatureInvalid
			}
			if !errors.Is(err, want) {
				t.Errorf("operation %d with a key for %s: %v, want %v", kind, p, err, want)
			}
		}
	}
	// Nor does it serve an algorithm of another purpose.
	for id, p := range map[alg.ID]hsm.Purpose{alg.AES256SIV: hsm.PurposeSeal, alg.AES256GCM: hsm.PurposeDeterministic, alg.HMACSHA256: hsm.PurposeSeal} {
		if !m.has(p) {
			continue
		}
		m.refused("an algorithm of another purpose", fault.AlgorithmNotAllowed, hsm.Op{Kind: hsm.Encrypt, Key: keys[p], Algorithm: id, Input: []byte("x")})
		if _, err := m.GenerateKey(t.Context(), hsm.Binding{Index: 7, Version: 1, Algorithm: id, Purpose: p}); !errors.Is(err, fault.AlgorithmNotAllowed) {
			t.Errorf("a key for %s with %s: %v", p, id, err)
		}
	}
	if _, err := m.GenerateKey(t.Context(), hsm.Binding{Index: 7, Version: 1, Algorithm: alg.AES256GCM}); err == nil {
		t.Errorf("a key for nothing: %v", err)
	}
}

// has reports whether the machine has keys of the purpose. What it has none of, testPurposes
// sees refused.
func (m *machine) has(p hsm.Purpose) bool { return slices.Contains(m.purposes, p) }

func purposeBytes(purposes []hsm.Purpose) (b []byte) {
	for _, p := range purposes {
		b = append(b, byte(p))
	}
	return b
}

// testDeterministic: equal plaintext and context seal to equal ciphertexts, and nothing else does.
func testDeterministic(t *testing.T, m *machine) {
	if !m.has(hsm.PurposeDeterministic) {
		return
	}
	key, next := m.keyFor(hsm.PurposeDeterministic, 7, 1, alg.AES256SIV), m.keyFor(hsm.PurposeDeterministic, 7, 2, alg.AES256SIV)
	seen := map[string]int{}
	for i, op := range []hsm.Op{
		{Key: key, Context: here, Input: []byte("hello")},
		{Key: key, Context: there, Input: []byte("hello")},
		{Key: key, Context: here, Input: []byte("hellp")},
		{Key: key, Context: here},
		{Key: key, Context: here, Input: bytes.Repeat([]byte("long"), 5000)},
		{Key: next, Context: here, Input: []byte("hello")},
	} {
		op.Kind = hsm.Encrypt
		first, again := m.must(op), m.must(op)
		if !bytes.Equal(first, again) || len(first) != len(op.Input)+envelope.Overhead {
			t.Errorf("%d: %x and %x", i, first, again)
		}
		if other, twice := seen[string(first[10:])]; twice {
			t.Errorf("%d and %d seal to the same", i, other)
		}
		seen[string(first[10:])] = i
		open := hsm.Op{Kind: hsm.Decrypt, Key: op.Key, Context: op.Context, Input: first}
		if got := m.must(open); !bytes.Equal(got, op.Input) {
			t.Errorf("%d opens to %d bytes", i, len(got))
		}
		for at := range min(len(first), 64) {
			open.Input = bytes.Clone(first)
			open.Input[at] ^= 1
			m.refused("a changed byte", fault.DecryptFailed, open)
		}
	}
}

func testMac(t *testing.T, m *machine) {
	if !m.has(hsm.PurposeMAC) {
		return
	}
	for _, id := range []alg.ID{alg.HMACSHA256, alg.HMACSM3} {
		key := m.keyFor(hsm.PurposeMAC, 7, 1, id)
		mac := m.must(hsm.Op{Kind: hsm.Mac, Key: key, Input: []byte("message"), Output: []byte("kept")})
		if !bytes.HasPrefix(mac, []byte("kept")) || len(mac) != 4+32 {
			t.Errorf("%s: %q", id, mac)
		}
		mac = mac[4:]
		verify := hsm.Op{Kind: hsm.VerifyMac, Key: key, Input: []byte("message"), Signature: mac}
		if out := m.must(verify); len(out) != 0 {
			t.Errorf("%s: verification returned %x", id, out)
		}
		for _, bad := range [][]byte{nil, mac[:31], append(bytes.Clone(mac), 0), append([]byte{mac[0] ^ 1}, mac[1:]...)} {
			verify.Signature = bad
			m.refused("another code", fault.SignatureInvalid, verify)
		}
		m.refused("another message", fault.SignatureInvalid, hsm.Op{Kind: hsm.VerifyMac, Key: key, Input: []byte("massage"), Signature: mac})
		if other := m.must(hsm.Op{Kind: hsm.Mac, Key: m.keyFor(hsm.PurposeMAC, 7, 1, id), Input: []byte("message")}); bytes.Equal(other, mac) {
			t.Errorf("%s: two keys have one code", id)
		}
	}
}

// verifiers check signatures with the libraries, without this project's code.
var verifiers = map[alg.ID]func(public, message, signature []byte) bool{
	alg.Ed25519: func(public, message, signature []byte) bool { return ed25519.Verify(public, message, signature) },
	alg.ECDSAP256: func(public, message, signature []byte) bool {
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), public)
		der, bad := alg.ToDER(signature)
		digest := sha256.Sum256(message)
		return err == nil && bad == nil && ecdsa.VerifyASN1(key, digest[:], der)
	},
	alg.SM2: func(public, message, signature []byte) bool {
		key, err := sm2.NewPublicKey(public)
		if err != nil {
			return false
		}
		digest, err := sm2.CalculateSM2Hash(key, message, []byte("1234567812345678"))
		der, bad := alg.ToDER(signature)
		return err == nil && bad == nil && sm2.VerifyASN1(key, digest, der)
	},
}

func testSign(t *testing.T, m *machine) {
	if !m.has(hsm.PurposeSign) {
		return
	}
	for id, valid := range verifiers {
		key := m.keyFor(hsm.PurposeSign, 7, 1, id)
		public := m.must(hsm.Op{Kind: hsm.PublicKey, Key: key})
		if again := m.must(hsm.Op{Kind: hsm.PublicKey, Key: key}); !bytes.Equal(public, again) {
			t.Errorf("%s: a key has two public keys", id)
		}
		for _, message := range [][]byte{nil, []byte("message"), bytes.Repeat([]byte("long"), 5000)} {
			signature := m.must(hsm.Op{Kind: hsm.Sign, Key: key, Input: message})
			if len(signature) != 64 || !valid(public, message, signature) {
				t.Errorf("%s: %x is no signature of %d bytes", id, signature, len(message))
			}
			verify := hsm.Op{Kind: hsm.Verify, Key: key, Input: message, Signature: signature}
			m.must(verify)
			for at := 0; at < len(signature); at += 7 {
				verify.Signature = bytes.Clone(signature)
				verify.Signature[at] ^= 4
				m.refused("a changed signature", fault.SignatureInvalid, verify)
			}
			verify.Signature = signature
			verify.Input = append(bytes.Clone(message), '!')
			m.refused("another message", fault.SignatureInvalid, verify)
			verify.Input, verify.Key = message, m.keyFor(hsm.PurposeSign, 7, 1, id)
			m.refused("another key", fault.SignatureInvalid, verify)
		}
	}
}

func testDataKey(t *testing.T, m *machine) {
	key := m.key(7, 1, m.other())
	seen := map[string]bool{}
	for _, size := range []int{16, 32, 64, 16} {
		ops := []hsm.Op{{Kind: hsm.DataKey, Key: key, Context: here, Size: size, Reveal: true}}
		if err := errors.Join(m.Do(t.Context(), ops), ops[0].Err); err != nil {
			t.Fatal(err)
		}
		got := m.must(hsm.Op{Kind: hsm.Decrypt, Key: key, Context: here, Input: ops[0].Output})
		if len(got) != size || !bytes.Equal(got, ops[0].Plain) || seen[string(got)] {
			t.Errorf("%d bytes: wrapped %x, given %x", size, got, ops[0].Plain)
		}
		seen[string(got)] = true
		m.refused("another context", fault.DecryptFailed, hsm.Op{Kind: hsm.Decrypt, Key: key, Context: there, Input: ops[0].Output})
		ops[0] = hsm.Op{Kind: hsm.DataKey, Key: key, Size: size}
		if err := errors.Join(m.Do(t.Context(), ops), ops[0].Err); err != nil || ops[0].Plain != nil {
			t.Errorf("not asked for: %x, %v", ops[0].Plain, err)
		}
	}
	for _, size := range []int{0, -1, hsm.MaxDataKey + 1} {
		m.refused("a size", fault.BadRequest, hsm.Op{Kind: hsm.DataKey, Key: key, Size: size})
	}
}

func testRandom(t *testing.T, m *machine) {
	for _, size := range []int{1, 32, hsm.MaxRandom} {
		a, b := m.must(hsm.Op{Kind: hsm.Random, Size: size}), m.must(hsm.Op{Kind: hsm.Random, Size: size, Output: []byte("kept")})
		if len(a) != size || len(b) != 4+size || size > 16 && hmac.Equal(a, b[4:]) {
			t.Errorf("%d bytes: %x, %x", size, a, b)
		}
	}
	for _, size := range []int{0, -1, hsm.MaxRandom + 1} {
		m.refused("a size", fault.BadRequest, hsm.Op{Kind: hsm.Random, Size: size})
	}
}
