package resident_test

import (
	"bytes"
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/hsm/resident"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

var update = flag.Bool("update", false, "write the golden vectors anew")

const goldenFile = "../../docs/vectors/resident.json"

// golden is one vector of suite 97.
type golden struct {
	Name             string            `json:"name"`
	Suite            int               `json:"suite"`
	Algorithm        string            `json:"algorithm"`
	BusinessKey      octets            `json:"business_key"`
	Index            uint32            `json:"index"`
	KeyVersion       uint32            `json:"key_version"`
	Salt             octets            `json:"salt"`
	Nonce            octets            `json:"nonce"`
	Context          map[string]string `json:"context"`
	Plaintext        octets            `json:"plaintext"`
	CanonicalContext octets            `json:"canonical_context"`
	Header           octets            `json:"header"`
	AAD              octets            `json:"aad"`
	Ciphertext       octets            `json:"ciphertext"`
	Text             string            `json:"text"`
}

// octets are bytes in hexadecimal.
type octets []byte

// MarshalText is that of encoding.TextMarshaler.
func (o octets) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, o), nil }

// UnmarshalText is that of encoding.TextUnmarshaler.
func (o *octets) UnmarshalText(text []byte) (err error) {
	*o, err = hex.DecodeString(string(text))
	return err
}

// newGolden makes vectors by hand, from docs/format.md.
func newGolden(t *testing.T) (all []golden) {
	for _, g := range []golden{
		{Name: "empty plaintext, no context", Index: 1, KeyVersion: 1, Context: map[string]string{}},
		{Name: "short text", Index: 7, KeyVersion: 1, Context: map[string]string{"app": "im", "conversation": "c-42"}, Plaintext: octets("hello")},
		{Name: "Chinese context and text", Index: 7, KeyVersion: 3, Context: map[string]string{"会话": "群聊一", "app": "im", "z": ""}, Plaintext: octets("三把钥匙")},
		{Name: "largest index and version", Index: 1<<32 - 1, KeyVersion: 1<<32 - 1, Context: map[string]string{"a": "b"}, Plaintext: octets("edge")},
		{Name: "a kilobyte", Index: 200, KeyVersion: 2, Context: map[string]string{"b": "2", "a": "1"}, Plaintext: octets(strings.Repeat("0123456789abcdef", 64))},
	} {
		seed := func(what string, n int) []byte {
			sum := sha256.Sum256([]byte("suite 97" + g.Name + what))
			return sum[:n]
		}
		g.Suite, g.Algorithm = int(alg.AES256GCMResident), alg.AES256GCMResident.String()
		g.BusinessKey, g.Salt, g.Nonce = seed("key", 32), seed("salt", 16), seed("nonce", 12)
		g.CanonicalContext = envelope.Context(g.Context).AppendCanonical(nil)
		h := envelope.Header{Suite: byte(g.Suite), Index: g.Index, Version: g.KeyVersion, Salt: [16]byte(g.Salt), Nonce: [12]byte(g.Nonce)}
		g.Header = h.Append(nil)
		g.AAD = slices.Concat(g.Header[:26], g.CanonicalContext)
		g.Ciphertext = gcmByHand(t, g.BusinessKey).Seal(bytes.Clone(g.Header), g.Nonce, g.Plaintext, g.AAD)
		g.Text = string(envelope.AppendText(nil, g.Ciphertext))
		all = append(all, g)
	}
	return all
}

// wrapByHand wraps a key as the token would: RFC 3394, section 2.2.1, and the tag.
func wrapByHand(t *testing.T, root hsm.Root, key []byte, b hsm.Binding) hsm.WrappedKey {
	t.Helper()
	header, err := hsm.WrapHeader{Suite: hsm.WrapKW, Generation: root.Generation, Binding: b}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(derivedByHand(t, root, "trikey/v1/wrap-kw"))
	if err != nil {
		t.Fatal(err)
	}
	r := append(bytes.Repeat([]byte{0xa6}, 8), key...) // A | R1 … R4
	var buf [16]byte
	for j := range 6 {
		for i := 1; i <= 4; i++ {
			copy(buf[:8], r)
			copy(buf[8:], r[8*i:])
			block.Encrypt(buf[:], buf[:])
			binary.BigEndian.PutUint64(r, binary.BigEndian.Uint64(buf[:])^uint64(4*j+i))
			copy(r[8*i:8*i+8], buf[8:])
		}
	}
	wrapped := slices.Concat(header, r)
	m := hmac.New(sha256.New, derivedByHand(t, root, "trikey/v1/bind"))
	m.Write(wrapped)
	return hsm.WrappedKey(m.Sum(wrapped))
}

// TestGolden has a token open what was sealed by hand, under keys that were wrapped by hand,
// and refuse it changed.
func TestGolden(t *testing.T) {
	if *update {
		raw, err := json.MarshalIndent(newGolden(t), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(goldenFile, append(raw, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	var all []golden
	if err := json.Unmarshal(raw, &all); err != nil || len(all) < 5 {
		t.Fatalf("%d vectors, %v", len(all), err)
	}
	root := hsmtest.NewRoot(t)
	e := open(t, resident.Config{}, root)
	for _, g := range all {
		key := wrapByHand(t, root, g.BusinessKey, hsm.Binding{Index: g.Index, Version: g.KeyVersion, Algorithm: alg.AES256GCM, Purpose: hsm.PurposeSeal, Region: hsmtest.Region})
		op := hsm.Op{Kind: hsm.Decrypt, Key: key, Context: envelope.Context(g.Context).AppendCanonical(nil), Input: g.Ciphertext}
		if out, err := do(t, e, op); err != nil || !bytes.Equal(out, g.Plaintext) {
			t.Errorf("%s: %q, %v", g.Name, out, err)
		}
		for _, at := range []int{2, 9, 10, 25, 26, len(g.Ciphertext) - 1} {
			op.Input = bytes.Clone(g.Ciphertext)
			op.Input[at] ^= 1
			if out, err := do(t, e, op); !errors.Is(err, fault.DecryptFailed) {
				t.Errorf("%s with byte %d changed: %q, %v", g.Name, at, out, err)
			}
		}
	}
}
