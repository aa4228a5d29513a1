package alg_test

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"

	"github.com/emmansun/gmsm/sm3"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
)

func suites() []alg.ID {
	return []alg.ID{alg.AES256GCM, alg.AES128GCM, alg.ChaCha20Poly1305, alg.SM4GCM, alg.SM4CBCHMAC, alg.AES256SIV}
}

func newCipher(t testing.TB, id alg.ID, key []byte) alg.Cipher {
	t.Helper()
	c, err := alg.NewCipher(id, key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func randomKey(t testing.TB, id alg.ID) []byte {
	t.Helper()
	a, err := alg.Lookup(id)
	if err != nil {
		t.Fatal(err)
	}
	key := make([]byte, a.KeySize)
	_, _ = rand.Read(key)
	return key
}

func TestNames(t *testing.T) {
	for _, id := range append(suites(), alg.HMACSHA256, alg.HMACSM3, alg.Ed25519, alg.ECDSAP256, alg.SM2) {
		got, err := alg.ByName(id.String())
		if err != nil || got != id {
			t.Errorf("ByName(%s) = %v, %v", id, got, err)
		}
	}
	if _, err := alg.ByName("rot13"); !errors.Is(err, fault.BadRequest) {
		t.Errorf("rot13: %v", err)
	}
	for _, id := range []alg.ID{0, 7, 255} {
		if _, err := alg.Lookup(id); !errors.Is(err, fault.AlgorithmNotAllowed) {
			t.Errorf("suite %d: %v", id, err)
		}
	}
}

func TestRoundTripAndTamper(t *testing.T) {
	nonce := make([]byte, 12)
	for _, id := range suites() {
		c := newCipher(t, id, randomKey(t, id))
		for _, size := range []int{0, 1, 15, 16, 17, 255, 4096, 70000} {
			plaintext := make([]byte, size)
			_, _ = rand.Read(plaintext)
			sealed := c.Seal([]byte("head"), nonce, plaintext, []byte("aad"))[4:]
			want := size + 16
			if id == alg.SM4CBCHMAC {
				want = size + 16 - size%16 + 16
			}
			if len(sealed) != want {
				t.Fatalf("%s: %d bytes seal to %d", id, size, len(sealed))
			}
			opened, err := c.Open(nil, nonce, sealed, []byte("aad"))
			if err != nil || !bytes.Equal(opened, plaintext) {
				t.Fatalf("%s, %d bytes: %v", id, size, err)
			}
			if _, err := c.Open(nil, nonce, sealed, []byte("aae")); !errors.Is(err, fault.DecryptFailed) {
				t.Errorf("%s: other additional data: %v", id, err)
			}
			sealed[size/2] ^= 0x40
			if _, err := c.Open(nil, nonce, sealed, []byte("aad")); !errors.Is(err, fault.DecryptFailed) {
				t.Errorf("%s: changed byte: %v", id, err)
			}
		}
	}
}

// HKDF here is HKDF there.
func TestHKDFAgreesWithStandardLibrary(t *testing.T) {
	for size := 1; size < 300; size += 7 {
		ikm, salt, info := make([]byte, size%65), make([]byte, size%33), make([]byte, size%40)
		_, _ = rand.Read(ikm)
		_, _ = rand.Read(salt)
		got := make([]byte, size)
		if err := alg.HKDF(sha256.New, got, ikm, salt, info); err != nil {
			t.Fatal(err)
		}
		want, err := hkdf.Key(sha256.New, ikm, salt, string(info), size)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("SHA-256, %d bytes: %x, want %x, %v", size, got, want, err)
		}
		if err := alg.HKDF(sm3.New, got, ikm, salt, info); err != nil {
			t.Fatal(err)
		}
		if want, err = hkdf.Key(sm3.New, ikm, salt, string(info), size); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("SM3, %d bytes: %x, want %x, %v", size, got, want, err)
		}
	}
}

func TestMessageKeysDiffer(t *testing.T) {
	business, salt := make([]byte, 32), make([]byte, 16)
	seen := map[string]string{}
	derive := func(id alg.ID, salt []byte, index, version uint32) {
		a, err := alg.Lookup(id)
		if err != nil {
			t.Fatal(err)
		}
		key := make([]byte, a.KeySize)
		if err := id.MessageKey(key, business, salt, index, version); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint(id, salt, index, version)
		if other, ok := seen[string(key[:16])]; ok {
			t.Errorf("%s and %s have one key", name, other)
		}
		seen[string(key[:16])] = name
	}
	for _, id := range suites() {
		derive(id, salt, 1, 1)
		derive(id, salt, 1, 2)
		derive(id, salt, 2, 1)
		derive(id, []byte("another salt 16b"), 1, 1)
	}
	if err := alg.AES256GCM.MessageKey(make([]byte, 16), business, salt, 1, 1); err == nil {
		t.Error("a short message key was derived")
	}
}

func TestKCV(t *testing.T) {
	zero, err := alg.KCV(make([]byte, 32))
	if err != nil || zero == "" || len(zero) != len("cmac-aes:")+6 {
		t.Fatalf("KCV = %q, %v", zero, err)
	}
	other, err := alg.KCV(bytes.Repeat([]byte{1}, 32))
	if err != nil || other == zero {
		t.Errorf("two keys have the check value %q, %v", zero, err)
	}
}

func BenchmarkSealOnce(b *testing.B) {
	for _, id := range suites() {
		key := randomKey(b, id)
		for _, size := range []int{64, 256, 1024, 65536} {
			b.Run(fmt.Sprintf("%s/%d", id, size), func(b *testing.B) {
				plaintext, dst, nonce := make([]byte, size), make([]byte, 0, size+16), make([]byte, 12)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					c := newCipher(b, id, key)
					dst = c.Seal(dst[:0], nonce, plaintext, nil)
					c.Erase()
				}
			})
		}
	}
}

func BenchmarkMessageKey(b *testing.B) {
	for _, id := range suites() {
		b.Run(id.String(), func(b *testing.B) {
			business, salt, dst := make([]byte, 32), make([]byte, 16), randomKey(b, id)
			b.ReportAllocs()
			for b.Loop() {
				if err := id.MessageKey(dst, business, salt, 7, 1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
