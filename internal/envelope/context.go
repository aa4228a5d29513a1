package envelope

import (
	"encoding/binary"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/trikey/trikey/internal/fault"
)

// Limits of a context.
const (
	MaxPairs      = 32
	MaxContextKey = 128      // bytes
	MaxValue      = 4 << 10  // bytes
	MaxContext    = 16 << 10 // bytes of the canonical form
)

const contextPrefix = "trikey/v1/context"

// Context is what a ciphertext is bound to: it opens only with the same. The nil
// and the empty context are the same.
type Context map[string]string

// Validate reports what about the context is not allowed: where several fields
// are wrong, the first of them by name.
func (c Context) Validate() error {
	if len(c) > MaxPairs {
		return fault.New(fault.BadRequest, "context: %d fields; at most %d are allowed", len(c), MaxPairs)
	}
	var wrong error
	var name string
	for key, value := range c {
		if wrong != nil && key > name {
			continue
		}
		if err := validateField(key, value); err != nil {
			wrong, name = err, key
		}
	}
	if wrong == nil && c.canonicalSize() > MaxContext {
		return fault.New(fault.BadRequest, "context: larger than %d bytes", MaxContext)
	}
	return wrong
}

// validateField names the field as it is only when the name is one that is
// allowed; else it is cut short and quoted, to be fit to print.
func validateField(key, value string) error {
	switch {
	case key == "":
		return fault.New(fault.BadRequest, "context: a field has no name")
	case len(key) > MaxContextKey:
		return fault.New(fault.BadRequest, "context: the name of the field %.32q… is longer than %d bytes", key, MaxContextKey)
	case !utf8.ValidString(key):
		return fault.New(fault.BadRequest, "context: the name of the field %q is not valid UTF-8", key)
	case len(value) > MaxValue:
		return fault.New(fault.BadRequest, "context.%s: longer than %d bytes", key, MaxValue)
	case !utf8.ValidString(value):
		return fault.New(fault.BadRequest, "context.%s: not valid UTF-8", key)
	}
	return nil
}

func (c Context) canonicalSize() int {
	size := len(contextPrefix)
	for key, value := range c {
		size += 4 + len(key) + 4 + len(value)
	}
	return size
}

// AppendCanonical appends the context's canonical form to dst:
// "trikey/v1/context", then for each field, sorted by the bytes of its name, the
// length of the name in 4 bytes, the name, the length of the value in 4 bytes, the
// value. Lengths keep fields apart: no two contexts have one form.
func (c Context) AppendCanonical(dst []byte) []byte {
	dst = append(slices.Grow(dst, c.canonicalSize()), contextPrefix...)
	var few [8]string // most contexts need no allocation
	for _, key := range sorted(few[:0], c) {
		dst = appendField(appendField(dst, key), c[key])
	}
	return dst
}

func sorted(keys []string, c Context) []string {
	keys = slices.AppendSeq(keys, maps.Keys(c))
	slices.Sort(keys)
	return keys
}

func appendField(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(s))), s...)
}

// indexPrefix begins the input of a blind index.
const indexPrefix = "trikey/v1/index"

// AppendIndexInput appends the input of a blind index to dst: "trikey/v1/index" |
// length of the canonical context 4 | canonical context | value.
func (c Context) AppendIndexInput(dst, value []byte) []byte {
	dst = append(slices.Grow(dst, len(indexPrefix)+4+c.canonicalSize()+len(value)), indexPrefix...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(c.canonicalSize()))
	return append(c.AppendCanonical(dst), value...)
}
