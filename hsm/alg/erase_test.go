package alg_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"reflect"
	"testing"
	"unsafe"

	"github.com/emmansun/gmsm/sm3"

	"github.com/trikey/trikey/hsm/alg"
)

// region is a piece of the heap that a cipher reaches, and the way to it. The
// bytes are the memory itself, not a copy.
type region struct {
	path  string
	bytes []byte
}

// reach collects all memory that v leads to: through pointers, interfaces and
// slices, exported or not. It fails on a kind that it cannot follow, so that a
// library that begins to keep a key in one does not go unnoticed.
func reach(t *testing.T, v reflect.Value, path string, found []region) []region {
	t.Helper()
	switch v.Kind() {
	case reflect.Interface:
		if !v.IsNil() {
			return reach(t, v.Elem(), path, found)
		}
	case reflect.Pointer:
		if v.IsNil() {
			return found
		}
		found = append(found, region{path, memory(v.UnsafePointer(), v.Type().Elem().Size())})
		return reach(t, v.Elem(), path, found)
	case reflect.Slice:
		if v.Cap() > 0 {
			found = append(found, region{path, memory(v.UnsafePointer(), uintptr(v.Cap())*v.Type().Elem().Size())})
		}
		for i := range v.Len() {
			found = reach(t, v.Index(i), fmt.Sprintf("%s[%d]", path, i), found)
		}
	case reflect.Array:
		for i := range v.Len() {
			found = reach(t, v.Index(i), fmt.Sprintf("%s[%d]", path, i), found)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			found = reach(t, v.Field(i), path+"."+v.Type().Field(i).Name, found)
		}
	case reflect.Map, reflect.Chan, reflect.Func, reflect.String, reflect.UnsafePointer:
		t.Errorf("%s is a %s, which this test cannot follow", path, v.Kind())
	default: // numbers lie in a region already
	}
	return found
}

func memory(p unsafe.Pointer, size uintptr) []byte { return unsafe.Slice((*byte)(p), size) }

// schedules returns the shapes in which a key may begin a key schedule: as it
// is, or as 32-bit words of this processor's byte order. SM4 keeps no key but
// round keys, of which GB/T 32907 gives those of its example key.
func schedules(t *testing.T, id alg.ID, key []byte) [][]byte {
	t.Helper()
	if id == alg.SM4GCM || id == alg.SM4CBCHMAC {
		first, err := hex.DecodeString("f12186f941662b615a6ab19a7ba92077")
		if err != nil {
			t.Fatal(err)
		}
		return [][]byte{words(first), key[16:]} // and the MAC key
	}
	if id == alg.AES256SIV { // two keys
		return [][]byte{key[:32], words(key[:32]), key[32:], words(key[32:])}
	}
	return [][]byte{key, words(key)}
}

func words(b []byte) []byte {
	var out []byte
	for ; len(b) >= 4; b = b[4:] {
		out = binary.NativeEndian.AppendUint32(out, binary.BigEndian.Uint32(b))
	}
	return out
}

// Erase must leave not one byte in anything that a cipher points to. That the key
// is found before shows that the test looks in the right places.
func TestEraseLeavesNoKey(t *testing.T) {
	example, err := hex.DecodeString("0123456789abcdeffedcba9876543210")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range suites() {
		t.Run(id.String(), func(t *testing.T) {
			key := randomKey(t, id)
			if id == alg.SM4GCM || id == alg.SM4CBCHMAC {
				copy(key, example)
			}
			c := newCipher(t, id, key)
			c.Seal(nil, make([]byte, 12), make([]byte, 100), []byte("aad"))
			regions := reach(t, reflect.ValueOf(c), "cipher", nil)
			places := 0
			for _, r := range regions {
				for _, s := range schedules(t, id, key) {
					if len(s) > 0 && bytes.Contains(r.bytes, s) {
						places++
						break
					}
				}
			}
			// A GCM object of the standard library has a copy of the block cipher.
			if want := map[alg.ID]int{alg.AES256GCM: 2, alg.AES128GCM: 2, alg.SM4CBCHMAC: 2, alg.AES256SIV: 2}[id]; places < max(1, want) {
				t.Fatalf("the key is in %d of %d regions before Erase: this test no longer looks where it is", places, len(regions))
			}
			c.Erase()
			for _, r := range regions {
				if rest := bytes.Trim(r.bytes, "\x00"); len(rest) != 0 {
					t.Errorf("%s: %d bytes are left after Erase: %x", r.path, len(rest), rest)
				}
			}
		})
	}
}

// The hashes under a derivation take in the secret; none may keep it.
func TestDerivationErasesItsHashes(t *testing.T) {
	for name, newHash := range map[string]func() hash.Hash{"SHA-256": sha256.New, "SM3": sm3.New} {
		var made []hash.Hash
		track := func() hash.Hash {
			h := newHash()
			made = append(made, h)
			return h
		}
		if err := alg.HKDF(track, make([]byte, 80), bytes.Repeat([]byte{0xa5}, 32), make([]byte, 16), []byte("info")); err != nil {
			t.Fatal(err)
		}
		erased := 0
		for i, h := range made {
			switch {
			case reflect.ValueOf(h).Elem().IsZero():
				erased++
			case !reflect.DeepEqual(h, newHash()): // one that was never written to holds nothing
				t.Errorf("%s: hash %d of %d keeps what it was fed", name, i, len(made))
			}
		}
		if want := 2 * (1 + 3); erased < want { // two for each HMAC: extract, and three blocks of output
			t.Errorf("%s: %d hashes were erased, want %d", name, erased, want)
		}
	}
}
