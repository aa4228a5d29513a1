package alg_test

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"reflect"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
)

var update = flag.Bool("update", false, "write the golden vectors anew")

const goldenFile = "ciphertext.json"

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
			if id == alg.AES256SIV { // deterministic: nothing is drawn
				all[len(all)-1].Salt, all[len(all)-1].Nonce = make([]byte, 16), make([]byte, 12)
			}
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
	if g.Ciphertext, err = alg.Seal(nil, g.MessageKey, &h, g.CanonicalContext, g.Plaintext); err != nil {
		t.Fatal(err)
	}
	if opened, err := alg.Open(nil, g.MessageKey, g.CanonicalContext, g.Ciphertext); err != nil || !bytes.Equal(opened, g.Plaintext) {
		t.Errorf("%s, %s: opens to %x, %v", g.Algorithm, g.Name, opened, err)
	}
	g.Text = string(envelope.AppendText(nil, g.Ciphertext))
	return g
}

func TestGolden(t *testing.T) {
	if *update {
		var all []golden
		for _, g := range goldenInputs() {
			all = append(all, g.compute(t))
		}
		writeVectors(t, goldenFile, all)
	}
	for _, g := range readVectors[golden](t, goldenFile, 30) {
		if got := g.compute(t); !reflect.DeepEqual(got, g) {
			t.Errorf("%s, %s:\n got %+v\nwant %+v", g.Algorithm, g.Name, got, g)
		}
	}
}
