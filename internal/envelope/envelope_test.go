package envelope_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

var sample = func() []byte {
	h := envelope.Header{Suite: 1, Index: 7, Version: 2, Salt: [16]byte{1, 2, 3}, Nonce: [12]byte{4, 5, 6}}
	return append(h.Append(nil), make([]byte, 16+5)...)
}()

func TestHeaderSizes(t *testing.T) {
	h, rest, err := envelope.Parse(sample)
	if err != nil || len(rest) != 21 || h.Index != 7 || h.Version != 2 || h.Suite != 1 {
		t.Fatalf("%+v, %d bytes, %v", h, len(rest), err)
	}
	if got := len(h.Append(nil)); got != 38 || envelope.Overhead != 54 {
		t.Errorf("header of %d bytes, overhead %d", got, envelope.Overhead)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing": nil, "short": sample[:53], "format 0": append([]byte{0}, sample[1:]...), "format 2": append([]byte{2}, sample[1:]...),
	} {
		if _, _, err := envelope.Parse(b); !errors.Is(err, fault.DecryptFailed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A ciphertext has one text and no other.
func TestTextIsUnique(t *testing.T) {
	text := envelope.AppendText(nil, sample)
	got, err := envelope.DecodeText(nil, text)
	if err != nil || !bytes.Equal(got, sample) {
		t.Fatal(err)
	}
	for _, other := range []string{
		string(text) + "\n", "\n" + string(text), strings.Replace(string(text), "A", "A\r\n", 1), string(text) + "=",
		strings.Replace(string(text), "tk1.", "TK1.", 1), strings.TrimPrefix(string(text), "tk1."), "tk1." + string(text), " " + string(text),
	} {
		if _, err := envelope.DecodeText(nil, []byte(other)); !errors.Is(err, fault.DecryptFailed) {
			t.Errorf("%q: %v", other, err)
		}
	}
	// Changing any one character changes or spoils the ciphertext, trailing bits included.
	for i := range text {
		for _, c := range []byte("ABab01-_.\n") {
			if c == text[i] {
				continue
			}
			changed := bytes.Clone(text)
			changed[i] = c
			if b, err := envelope.DecodeText(nil, changed); err == nil && bytes.Equal(b, sample) {
				t.Errorf("character %d as %q reads the same", i, c)
			}
		}
	}
}

func TestCanonicalContext(t *testing.T) {
	form := func(c envelope.Context) string { return string(c.AppendCanonical(nil)) }
	if form(nil) != "trikey/v1/context" || form(envelope.Context{}) != form(nil) {
		t.Errorf("the empty context is %q", form(nil))
	}
	want := "trikey/v1/context\x00\x00\x00\x01a\x00\x00\x00\x011\x00\x00\x00\x02aa\x00\x00\x00\x00\x00\x00\x00\x01b\x00\x00\x00\x012"
	if got := form(envelope.Context{"b": "2", "aa": "", "a": "1"}); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	seen := map[string]bool{}
	for _, c := range []envelope.Context{{"a": "bc"}, {"ab": "c"}, {"a": "b", "c": ""}, {"a": "", "bc": ""}, {"": ""}, {"a": ""}, {"": "a"}} {
		if seen[form(c)] {
			t.Errorf("%v has the form of another", c)
		}
		seen[form(c)] = true
	}
}

func TestValidate(t *testing.T) {
	many := envelope.Context{}
	for i := range 33 {
		many[strings.Repeat("k", i+1)] = ""
	}
	big := envelope.Context{}
	for _, k := range []string{"a", "b", "c", "d", "e"} {
		big[k] = strings.Repeat("x", 4000)
	}
	for name, c := range map[string]envelope.Context{
		"33 fields": many, "no name": {"": "x"}, "long name": {strings.Repeat("k", 129): ""}, "long value": {"k": strings.Repeat("v", 4097)},
		"not UTF-8": {"k": "\xff"}, "name not UTF-8": {"\xff": ""}, "large": big,
	} {
		if err := c.Validate(); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	full := envelope.Context{strings.Repeat("k", 128): strings.Repeat("v", 4096)}
	for i := range 31 {
		full[strings.Repeat("n", i+1)] = ""
	}
	exact := envelope.Context{"a": strings.Repeat("v", 4096), "b": strings.Repeat("v", 4096), "c": strings.Repeat("v", 4096), "d": ""}
	exact["d"] = strings.Repeat("v", envelope.MaxContext-len(exact.AppendCanonical(nil)))
	for _, c := range []envelope.Context{nil, {"会话": "一"}, full, exact} {
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
	}
	exact["d"] += "v"
	if err := exact.Validate(); !errors.Is(err, fault.BadRequest) {
		t.Errorf("one byte too large: %v", err)
	}
}

// Who has to correct a context is told which field, and always the same one.
func TestValidateNamesTheField(t *testing.T) {
	long := strings.Repeat("v", 4097)
	for want, c := range map[string]envelope.Context{
		"context.chat: ":                {"app": "im", "chat": long, "message": long, "sender": "\xff"},
		"context.会话: ":                  {"app": "im", "会话": "\xff"},
		`field "\xffname" `:             {"app": "im", "\xffname": ""},
		strings.Repeat("k", 32) + `"… `: {"app": "im", strings.Repeat("k", 129): ""},
	} {
		for range 20 {
			if err := c.Validate(); !errors.Is(err, fault.BadRequest) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q in it", err, want)
			}
		}
	}
}

func BenchmarkCanonical(b *testing.B) {
	c := envelope.Context{"app": "im", "chat_type": "group", "conversation": "c-4711", "sender": "u-1", "message": "m-99"}
	dst := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		dst = c.AppendCanonical(dst[:0])
	}
}
