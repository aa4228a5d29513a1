package policy

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

// FieldType is what the value of a context field must be.
type FieldType string

// The types of context fields. All values are text on the wire; a type narrows which.
const (
	String FieldType = "string" // any text but the empty one
	Int    FieldType = "int"    // a decimal integer of 64 bits, written the one way
	Enum   FieldType = "enum"   // one of a list
)

// Bounds of what a key may ask for.
const maxEnum = 64

// Field is a context field that a key asks for.
type Field struct {
	Name   string    `json:"name"`
	Type   FieldType `json:"type"`
	Values []string  `json:"values,omitempty"` // of an Enum
}

// ContextRule is what a key asks of the context of all that it seals. The zero value asks
// for nothing.
type ContextRule struct {
	Fields []Field `json:"fields,omitempty"`
	Strict bool    `json:"strict,omitzero"` // no other fields
}

var (
	fieldForm = regexp.MustCompile(`^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})(?::(string|int|enum)(?:\(([^()]*)\))?)?$`)
	valueForm = regexp.MustCompile(`^[^\s,|():\p{C}]{1,128}$`)
)

// ParseContextRule reads fields like app,chat_type:enum(dm|group),revision:int. A
// field without a type is a string.
func ParseContextRule(text string) (ContextRule, error) {
	var r ContextRule
	if strings.TrimSpace(text) == "" {
		return r, nil
	}
	seen := map[string]bool{}
	for part := range strings.SplitSeq(text, ",") {
		m := fieldForm.FindStringSubmatch(strings.TrimSpace(part))
		if m == nil {
			return r, fault.New(fault.BadRequest, "require_context: %q is not a field like app, revision:int or chat_type:enum(dm|group)", part)
		}
		f := Field{Name: m[1], Type: FieldType(m[2])}
		if f.Type == "" {
			f.Type = String
		}
		if m[3] != "" {
			f.Values = strings.Split(m[3], "|")
		}
		if (f.Type == Enum) != (len(f.Values) > 0) || len(f.Values) > maxEnum {
			return r, fault.New(fault.BadRequest, "require_context: %q: an enum has 1 to %d values, as in chat_type:enum(dm|group), and no other type has any",
				part, maxEnum)
		}
		for _, v := range f.Values {
			if !valueForm.MatchString(v) {
				return r, fault.New(fault.BadRequest, "require_context: %q: the value %q is empty, too long, or has a character that cannot stand there", f.Name, v)
			}
		}
		if seen[f.Name] {
			return r, fault.New(fault.BadRequest, "require_context: the field %q is there twice", f.Name)
		}
		seen[f.Name] = true
		r.Fields = append(r.Fields, f)
	}
	if len(r.Fields) > envelope.MaxPairs {
		return r, fault.New(fault.BadRequest, "require_context: %d fields; a context has at most %d", len(r.Fields), envelope.MaxPairs)
	}
	return r, nil
}

// String writes the fields as ParseContextRule reads them.
func (r ContextRule) String() string {
	parts := make([]string, len(r.Fields))
	for i, f := range r.Fields {
		parts[i] = f.Name
		switch f.Type {
		case String:
		case Enum:
			parts[i] += ":enum(" + strings.Join(f.Values, "|") + ")"
		default:
			parts[i] += ":" + string(f.Type)
		}
	}
	return strings.Join(parts, ",")
}

// Check reports what the context lacks, as fault.ContextRequired. It never repeats a
// value: those are the caller's.
func (r *ContextRule) Check(c envelope.Context) error {
	for i := range r.Fields {
		f := &r.Fields[i]
		v, ok := c[f.Name]
		if !ok {
			return fault.New(fault.ContextRequired, "context.%s: the key asks for this field (%s)", f.Name, r)
		}
		if !f.takes(v) {
			return fault.New(fault.ContextRequired, "context.%s: the key asks for %s", f.Name, f.wants())
		}
	}
	if !r.Strict || len(c) == len(r.Fields) {
		return nil
	}
	return fault.New(fault.ContextRequired, "context: the key takes these fields and no others: %s", r)
}

func (f *Field) takes(v string) bool {
	switch f.Type {
	case Enum:
		return slices.Contains(f.Values, v)
	case Int:
		// The one way to write it: two texts of one number would be two contexts.
		n, err := strconv.ParseInt(v, 10, 64)
		return err == nil && strconv.FormatInt(n, 10) == v
	}
	return v != ""
}

func (f *Field) wants() string {
	switch f.Type {
	case Enum:
		return "one of " + strings.Join(f.Values, ", ")
	case Int:
		return "a decimal integer"
	}
	return "a text that is not empty"
}
