package envelope_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/trikey/trikey/internal/envelope"
)

func FuzzHeader(f *testing.F) {
	f.Add(sample)
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{1}, 54))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, rest, err := envelope.Parse(b)
		if err == nil && !bytes.Equal(append(h.Append(nil), rest...), b) {
			t.Errorf("%x does not survive", b)
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add(string(envelope.AppendText(nil, sample)))
	f.Add("tk1.")
	f.Add("tk1.AA\n")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := envelope.DecodeText(nil, []byte(text))
		if err == nil && string(envelope.AppendText(nil, b)) != text {
			t.Errorf("%q does not survive", text)
		}
	})
}

// Two contexts have one canonical form only when they are one context.
func FuzzContext(f *testing.F) {
	f.Add("a", "b", "c", "d")
	f.Add("", "", "", "")
	f.Add("a", "bc", "ab", "c")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		a, b := envelope.Context{k1: v1}, envelope.Context{k2: v2}
		same := k1 == k2 && v1 == v2
		if bytes.Equal(a.AppendCanonical(nil), b.AppendCanonical(nil)) != same {
			t.Errorf("%q and %q", a, b)
		}
	})
}

// What can be read as a canonical context is written again as it was.
func FuzzCanonical(f *testing.F) {
	f.Add(envelope.Context(nil).AppendCanonical(nil))
	f.Add(envelope.Context{"app": "im", "conversation": "c-42"}.AppendCanonical(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, ok := parseCanonical(b)
		if ok && !bytes.Equal(c.AppendCanonical(nil), b) {
			t.Errorf("%x does not survive", b)
		}
	})
}

func TestCanonicalSurvives(t *testing.T) {
	for _, c := range []envelope.Context{{}, {"": ""}, {"a": "1", "aa": "", "b": "\x00"}, {"会话": "一", "～": "", "😀": ""}} {
		got, ok := parseCanonical(c.AppendCanonical(nil))
		if !ok || len(got) != len(c) {
			t.Fatalf("%q is read as %q, %v", c, got, ok)
		}
		for k, v := range c {
			if got[k] != v {
				t.Errorf("field %q is %q, want %q", k, got[k], v)
			}
		}
	}
}

// parseCanonical reads a canonical context, fields in the order of their names
// and nothing after them. The product never has to.
func parseCanonical(b []byte) (envelope.Context, bool) {
	rest, ok := bytes.CutPrefix(b, []byte("trikey/v1/context"))
	field := func() (s string) {
		if !ok || len(rest) < 4 || uint64(len(rest)-4) < uint64(binary.BigEndian.Uint32(rest)) {
			ok = false
			return ""
		}
		end := 4 + int(binary.BigEndian.Uint32(rest))
		s, rest = string(rest[4:end]), rest[end:]
		return s
	}
	c, last := envelope.Context{}, ""
	for ok && len(rest) > 0 {
		key, value := field(), field()
		if len(c) > 0 && key <= last {
			return nil, false
		}
		c[key], last = value, key
	}
	return c, ok
}
