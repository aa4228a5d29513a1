package alg_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
)

const vectorDir = "../../docs/vectors"

// readVectors reads a file of docs/vectors, and fails if it has fewer than want.
func readVectors[T any](t *testing.T, file string, want int) []T {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(vectorDir, file))
	if err != nil {
		t.Fatal(err)
	}
	var all []T
	if err := json.Unmarshal(raw, &all, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	if len(all) < want {
		t.Fatalf("%s: %d vectors, want %d", file, len(all), want)
	}
	return all
}

func writeVectors[T any](t *testing.T, file string, all []T) {
	t.Helper()
	raw, err := json.Marshal(all, jsontext.WithIndent("  "), json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(vectorDir, file), append(raw, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

const contextFile = "context.json"

// contextVector is a context and its canonical form; one that is refused has none.
type contextVector struct {
	Name      string            `json:"name"`
	Context   map[string]string `json:"context"`
	Valid     bool              `json:"valid"`
	Canonical hexBytes          `json:"canonical"`
}

func contextInputs() []contextVector {
	full, over := map[string]string{}, map[string]string{}
	for i := range envelope.MaxPairs + 1 {
		over[fmt.Sprintf("field%d", i)] = ""
		if i < envelope.MaxPairs {
			full[fmt.Sprintf("field%d", i)] = ""
		}
	}
	return []contextVector{
		{Name: "no context", Context: nil},
		{Name: "one field", Context: map[string]string{"app": "im"}},
		{Name: "an empty value", Context: map[string]string{"app": ""}},
		{Name: "sorted by bytes: capitals first, a prefix before the longer name", Context: map[string]string{"b": "1", "aa": "2", "a": "3", "B": "4", "_": "5"}},
		{Name: "digits are sorted as bytes, not as numbers", Context: map[string]string{"k10": "a", "k9": "b"}},
		{Name: "a border between name and value, here", Context: map[string]string{"a": "bc"}},
		{Name: "a border between name and value, there", Context: map[string]string{"ab": "c"}},
		{Name: "Chinese", Context: map[string]string{"会话": "群聊一", "app": "im"}},
		{Name: "UTF-8 bytes and UTF-16 units sort these two names differently", Context: map[string]string{"\uff5e": "1", "\U0001f600": "2"}},
		{Name: "no normalisation: a composed and a decomposed letter are two names", Context: map[string]string{"\u00e9": "1", "e\u0301": "2"}},
		{Name: "values are taken as they are", Context: map[string]string{"v": " \x00\"\\/<>&\r\n\u2028 "}},
		{Name: "the longest name", Context: map[string]string{strings.Repeat("n", envelope.MaxContextKey): "v"}},
		{Name: "as many fields as may be", Context: full},
		{Name: "refused: a field too many", Context: over},
		{Name: "refused: no name", Context: map[string]string{"": "v"}},
		{Name: "refused: a name too long by one byte", Context: map[string]string{strings.Repeat("n", envelope.MaxContextKey+1): "v"}},
		{Name: "refused: a name of 43 letters that is 129 bytes", Context: map[string]string{strings.Repeat("名", 43): "v"}},
		{Name: "refused: a value too long by one byte", Context: map[string]string{"v": strings.Repeat("v", envelope.MaxValue+1)}},
	}
}

func (v contextVector) compute() contextVector {
	c := envelope.Context(v.Context)
	v.Canonical = hexBytes{}
	if v.Valid = c.Validate() == nil; v.Valid {
		v.Canonical = c.AppendCanonical(nil)
	}
	return v
}

func TestGoldenContext(t *testing.T) {
	if *update {
		var all []contextVector
		for _, v := range contextInputs() {
			all = append(all, v.compute())
		}
		writeVectors(t, contextFile, all)
	}
	for _, v := range readVectors[contextVector](t, contextFile, 18) {
		if got := v.compute(); !reflect.DeepEqual(got, v) {
			t.Errorf("%s:\n got %+v\nwant %+v", v.Name, got, v)
		}
		if v.Valid == strings.HasPrefix(v.Name, "refused: ") {
			t.Errorf("%s: valid is %v", v.Name, v.Valid)
		}
	}
}

const kcvFile = "kcv.json"

// kcvVector is a key and its check value.
type kcvVector struct {
	Name    string   `json:"name"`
	Key     hexBytes `json:"key"`
	Info    hexBytes `json:"info"`
	Derived hexBytes `json:"derived_key"`
	CMAC    hexBytes `json:"cmac"`
	KCV     string   `json:"kcv"`
}

func kcvInputs() []kcvVector {
	counting := make([]byte, 32)
	for i := range counting {
		counting[i] = byte(i)
	}
	named := sha256.Sum256([]byte("a named key"))
	return []kcvVector{
		{Name: "zeros", Key: make([]byte, 32)},
		{Name: "ones", Key: []byte(strings.Repeat("\xff", 32))},
		{Name: "00 to 1f", Key: counting},
		{Name: "SHA-256 of \"a named key\"", Key: named[:]},
		{Name: "16 bytes", Key: counting[:16]},
	}
}

func (v kcvVector) compute(t *testing.T) kcvVector {
	t.Helper()
	v.Info, v.Derived = hexBytes("trikey/v1/kcv"), make([]byte, 32)
	if err := alg.HKDF(sha256.New, v.Derived, v.Key, nil, v.Info); err != nil {
		t.Fatal(err)
	}
	sum, err := alg.CMAC(v.Derived, make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	v.CMAC = sum
	if v.KCV, err = alg.KCV(v.Key); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestGoldenKCV(t *testing.T) {
	if *update {
		var all []kcvVector
		for _, v := range kcvInputs() {
			all = append(all, v.compute(t))
		}
		writeVectors(t, kcvFile, all)
	}
	for _, v := range readVectors[kcvVector](t, kcvFile, 5) {
		if got := v.compute(t); !reflect.DeepEqual(got, v) {
			t.Errorf("%s:\n got %+v\nwant %+v", v.Name, got, v)
		}
	}
}
