package alg_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"flag"
	"hash"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/sm4"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
)

var update = flag.Bool("update", false, "write the golden vectors anew")

const goldenFile = "../../docs/vectors/ciphertext.json"

// golden is one vector: inputs first, then every value on the way.
type golden struct {
	Name             string            `json:"name"`
	Suite            int               `json:"suite"`
	Algorithm        string            `json:"algorithm"`
	BusinessKey      hexBytes          `json:"business_key"`
	KCV              string            `json:"kcv"`
	Index            uint32            `json:"index"`
	KeyVersion       uint32            `json:"key_version"`
	Salt             hexBytes          `json:"salt"`
	Nonce            hexBytes          `json:"nonce"`
	Context          map[string]string `json:"context"`
	Plaintext        hexBytes          `json:"plaintext"`
	Info             hexBytes          `json:"info"`
	MessageKey       hexBytes          `json:"message_key"`
	CanonicalContext hexBytes          `json:"canonical_context"`
	Header           hexBytes          `json:"header"`
	AAD              hexBytes          `json:"aad"`
	Ciphertext       hexBytes          `json:"ciphertext"`
	Text             string            `json:"text"`
}

// goldenInputs makes the inputs of the vectors, fixed by their names.
func goldenInputs() []golden {
	type sample struct {
		name           string
		index, version uint32
		context        map[string]string
		plaintext      string
	}
	samples := []sample{
		{"empty plaintext, no context", 1, 1, nil, ""},
		{"short text", 7, 1, map[string]string{"app": "im", "conversation": "c-42"}, "hello"},
		{"Chinese context and text", 7, 3, map[string]string{"会话": "群聊一", "app": "im", "z": ""}, "三把钥匙"},
		{"largest index and version", 0xffffffff, 0xffffffff, map[string]string{"a": "b"}, "edge"},
		{"a kilobyte", 200, 2, map[string]string{"b": "2", "a": "1", "aa": "3"}, strings.Repeat("0123456789abcdef", 64)},
	}
	var all []golden
	for _, id := range suites() {
		for _, s := range samples {
			seed := func(what string, n int) []byte {
				sum := sha256.Sum256([]byte(id.String() + s.name + what))
				return sum[:n]
			}
			all = append(all, golden{
				Name: s.name, Suite: int(id), Algorithm: id.String(), Index: s.index, KeyVersion: s.version, Context: s.context,
				BusinessKey: seed("key", 32), Salt: seed("salt", 16), Nonce: seed("nonce", 12), Plaintext: []byte(s.plaintext),
			})
		}
	}
	return all
}

// compute fills in what follows from the inputs, with the code of the product.
func (g golden) compute(t *testing.T) golden {
	t.Helper()
	id := alg.ID(g.Suite)
	a, err := alg.Lookup(id)
	if err != nil {
		t.Fatal(err)
	}
	h := envelope.Header{Suite: byte(id), Index: g.Index, Version: g.KeyVersion, Salt: [16]byte(g.Salt), Nonce: [12]byte(g.Nonce)}
	g.Info = id.AppendInfo(nil, g.Index, g.KeyVersion)
	g.MessageKey = make([]byte, a.KeySize)
	if err := id.MessageKey(g.MessageKey, g.BusinessKey, g.Salt, g.Index, g.KeyVersion); err != nil {
		t.Fatal(err)
	}
	if g.KCV, err = alg.KCV(g.BusinessKey); err != nil {
		t.Fatal(err)
	}
	g.CanonicalContext = envelope.Context(g.Context).AppendCanonical(nil)
	g.Header = h.Append(nil)
	g.AAD = h.AppendAAD(nil, g.CanonicalContext)
	g.Ciphertext = newCipher(t, id, g.MessageKey).Seal(h.Append(nil), g.Nonce, g.Plaintext, g.AAD)
	g.Text = string(envelope.AppendText(nil, g.Ciphertext))
	return g
}

func readGolden(t *testing.T) []golden {
	t.Helper()
	raw, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	var all []golden
	if err := json.Unmarshal(raw, &all, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("%d golden vectors, want 20", len(all))
	}
	return all
}

func TestGolden(t *testing.T) {
	if *update {
		var all []golden
		for _, g := range goldenInputs() {
			all = append(all, g.compute(t))
		}
		raw, err := json.Marshal(all, jsontext.WithIndent("  "), json.Deterministic(true))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(goldenFile, append(raw, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range readGolden(t) {
		if got := g.compute(t); !reflect.DeepEqual(got, g) {
			t.Errorf("%s, %s:\n got %+v\nwant %+v", g.Algorithm, g.Name, got, g)
		}
	}
}

// A decoder written from docs/format.md alone, with nothing of the product, opens
// every vector from its business key, context and text.
func TestGoldenByHand(t *testing.T) {
	for _, g := range readGolden(t) {
		raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(g.Text, "tk1."))
		if err != nil {
			t.Fatal(err)
		}
		aad := append(bytes.Clone(raw[:10]), "trikey/v1/context"...)
		for _, name := range slices.Sorted(maps.Keys(g.Context)) {
			for _, s := range []string{name, g.Context[name]} {
				n := len(s)
				aad = append(append(aad, byte(n>>24), byte(n>>16), byte(n>>8), byte(n)), s...)
			}
		}
		aead, err := byHand(raw[1], g.BusinessKey, raw[10:26], append([]byte("trikey/v1/data"), raw[1:10]...))
		if err != nil {
			t.Fatal(err)
		}
		opened, err := aead.Open(nil, raw[26:38], raw[38:], aad)
		if err != nil || !bytes.Equal(opened, g.Plaintext) {
			t.Errorf("%s, %s: %v", g.Algorithm, g.Name, err)
		}
	}
}

func byHand(suite byte, key, salt, info []byte) (cipher.AEAD, error) {
	newHash, size := sha256.New, 32
	if suite == 4 {
		newHash = sm3.New
	}
	if suite == 2 || suite == 4 {
		size = 16
	}
	sum := func(newHash func() hash.Hash, key, message []byte) []byte {
		m := hmac.New(newHash, key)
		m.Write(message)
		return m.Sum(nil)
	}
	messageKey := sum(newHash, sum(newHash, salt, key), append(info, 1))[:size]
	if suite == 3 {
		return chacha20poly1305.New(messageKey)
	}
	newBlock := aes.NewCipher
	if suite == 4 {
		newBlock = sm4.NewCipher
	}
	block, err := newBlock(messageKey)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
