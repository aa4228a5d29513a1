package hsmtest

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest/kwp"
	"github.com/trikey/trikey/hsm/keyimport"
	"github.com/trikey/trikey/internal/fault"
)

// Blob wraps a key for an import, as its sender does: CKM_RSA_AES_KEY_WRAP.
func Blob(t testing.TB, public, key []byte) []byte {
	t.Helper()
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	kek := make([]byte, 32)
	_, _ = rand.Read(kek)
	head, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, parsed.(*rsa.PublicKey), kek, nil)
	if err != nil {
		t.Fatal(err)
	}
	return append(head, kwp.Wrap(t, kek, key)...)
}

// importer returns the machine as one that takes keys in. What is none passes these tests:
// to import is not every machine's.
func (m *machine) importer() (hsm.Importer, bool) {
	i, ok := m.Machine.(hsm.Importer)
	return i, ok
}

func (m *machine) importKey(key []byte, b hsm.Binding) hsm.WrappedKey {
	m.t.Helper()
	i, _ := m.importer()
	begun, err := i.BeginImport(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	made, err := i.FinishImport(m.t.Context(), begun.ID, Blob(m.t, begun.Public, key), b)
	if err != nil {
		m.t.Fatal(err)
	}
	if want, err := alg.KCV(key); err != nil || made.KCV != want {
		m.t.Errorf("KCV %q, want %q", made.KCV, want)
	}
	return made.Wrapped
}

// testImport: an imported key is the key that was sent.
func testImport(t *testing.T, m *machine) {
	if _, ok := m.importer(); !ok {
		return
	}
	key := bytes.Repeat([]byte{0x5a, 0xa5}, 16)
	w := m.importKey(key, hsm.Binding{Index: 9, Version: 1, Algorithm: alg.HMACSHA256, Purpose: hsm.PurposeMAC, Exportable: true})
	if h, err := w.Header(); err != nil || h.Index != 9 || h.Purpose != hsm.PurposeMAC || !h.Exportable || h.Region != Region {
		t.Errorf("%+v, %v", h, err)
	}
	want := hmac.New(sha256.New, key)
	want.Write([]byte("message"))
	if got := m.must(hsm.Op{Kind: hsm.Mac, Key: w, Input: []byte("message")}); !bytes.Equal(got, want.Sum(nil)) {
		t.Errorf("its code is %x", got)
	}
}

func testImportRefused(t *testing.T, m *machine) {
	i, ok := m.importer()
	if !ok {
		return
	}
	b := hsm.Binding{Index: 9, Version: 1, Algorithm: alg.AES256GCM, Purpose: hsm.PurposeSeal}
	key := make([]byte, 32)
	begin := func() hsm.ImportKey {
		begun, err := i.BeginImport(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return begun
	}
	refused := func(what string, want fault.Code, id hsm.ID, blob []byte) {
		if made, err := i.FinishImport(t.Context(), id, blob, b); !errors.Is(err, want) || made.Wrapped != "" {
			t.Errorf("%s: %v, want %s", what, err, string(want))
		}
	}
	one, other := begin(), begin()
	blob := Blob(t, one.Public, key)
	refused("an import that nobody began", fault.NotFound, hsm.NewID(), blob)
	refused("for another import", fault.BadRequest, other.ID, blob)
	refused("a spent import", fault.NotFound, other.ID, Blob(t, other.Public, key))
	if _, err := i.FinishImport(t.Context(), one.ID, blob, hsm.Binding{Algorithm: alg.Ed25519, Purpose: hsm.PurposeSeal}); !errors.Is(err, fault.AlgorithmNotAllowed) {
		t.Errorf("for an algorithm of another purpose: %v", err)
	}
	if _, err := i.FinishImport(t.Context(), one.ID, blob, b); err != nil { // that refusal spent nothing
		t.Error(err)
	}
	refused("twice", fault.NotFound, one.ID, blob)
	begun := begin()
	bad := Blob(t, begun.Public, key)
	bad[len(bad)-1] ^= 1
	refused("a changed byte", fault.BadRequest, begun.ID, bad)
	begun = begin()
	refused("a key of 24 bytes", fault.BadRequest, begun.ID, Blob(t, begun.Public, key[:24]))
	for range keyimport.Pending {
		begin()
	}
	if _, err := i.BeginImport(t.Context()); !errors.Is(err, fault.Conflict) {
		t.Errorf("one import too many: %v", err)
	}
}

// testGolden opens ciphertexts of docs/vectors, computes codes and public keys and verifies
// signatures, two of each algorithm, with the business keys imported.
func testGolden(t *testing.T, m *machine) {
	if _, ok := m.importer(); !ok {
		return
	}
	ran := 0
	for _, v := range golden(t, "ciphertext.json") {
		p := hsm.PurposeSeal
		if alg.ID(v.Suite) == alg.AES256SIV {
			p = hsm.PurposeDeterministic
		}
		key := m.importKey(v.hex(t, v.BusinessKey), hsm.Binding{Index: v.Index, Version: v.KeyVersion, Algorithm: alg.ID(v.Suite), Purpose: p})
		got := m.must(hsm.Op{Kind: hsm.Decrypt, Key: key, Context: v.hex(t, v.CanonicalContext), Input: v.hex(t, v.Ciphertext)})
		if hex.EncodeToString(got) != v.Plaintext {
			t.Errorf("%s: %x", v.Name, got)
		}
		if p == hsm.PurposeDeterministic {
			again := m.must(hsm.Op{Kind: hsm.Encrypt, Key: key, Context: v.hex(t, v.CanonicalContext), Input: got})
			if hex.EncodeToString(again) != v.Ciphertext {
				t.Errorf("%s: seals to %x", v.Name, again)
			}
		}
		ran++
	}
	for _, v := range golden(t, "mac.json") {
		id, err := alg.ByName(v.Algorithm)
		if err != nil {
			t.Fatal(err)
		}
		key := m.importKey(v.hex(t, v.BusinessKey), hsm.Binding{Index: 7, Version: 1, Algorithm: id, Purpose: hsm.PurposeMAC})
		if got := m.must(hsm.Op{Kind: hsm.Mac, Key: key, Input: v.hex(t, v.Input)}); hex.EncodeToString(got) != v.Mac {
			t.Errorf("%s: %x", v.Name, got)
		}
		ran++
	}
	for _, v := range golden(t, "sign.json") {
		id, err := alg.ByName(v.Algorithm)
		if err != nil {
			t.Fatal(err)
		}
		key := m.importKey(v.hex(t, v.BusinessKey), hsm.Binding{Index: v.Index, Version: v.KeyVersion, Algorithm: id, Purpose: hsm.PurposeSign})
		if got := m.must(hsm.Op{Kind: hsm.PublicKey, Key: key}); hex.EncodeToString(got) != v.PublicKey {
			t.Errorf("%s: %x", v.Name, got)
		}
		m.must(hsm.Op{Kind: hsm.Verify, Key: key, Input: v.hex(t, v.Message), Signature: v.hex(t, v.Signature)})
		ran++
	}
	if ran < 2*(6+2+3) {
		t.Errorf("ran %d vectors", ran)
	}
}

// vector has what the tests here read of the vectors in docs/vectors.
type vector struct {
	Name             string `json:"name"`
	Suite            int    `json:"suite"`
	Algorithm        string `json:"algorithm"`
	Index            uint32 `json:"index"`
	KeyVersion       uint32 `json:"key_version"`
	BusinessKey      string `json:"business_key"`
	CanonicalContext string `json:"canonical_context"`
	Plaintext        string `json:"plaintext"`
	Ciphertext       string `json:"ciphertext"`
	Input            string `json:"input"`
	Mac              string `json:"mac"`
	Message          string `json:"message"`
	Signature        string `json:"signature"`
	PublicKey        string `json:"public_key"`
}

func (v vector) hex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatalf("%s: %v", v.Name, err)
	}
	return b
}

func golden(t *testing.T, file string) (all []vector) {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	raw, err := os.ReadFile(filepath.Join(filepath.Dir(here), "../../docs/vectors", file))
	if err == nil {
		err = json.Unmarshal(raw, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	return slices.DeleteFunc(all, func(v vector) bool {
		seen[v.Algorithm]++
		return seen[v.Algorithm] > 2 // each import takes an RSA key
	})
}
