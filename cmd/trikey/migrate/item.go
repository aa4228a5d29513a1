package migrate

import (
	"errors"
	"slices"
	"strings"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/sdk"
)

// source reads one file, item by item.
type source interface {
	next() (*item, error) // errEnd after the last
}

var errEnd = errors.New("migrate: the end of the file")

type outcome uint8

const (
	pending outcome = iota // has a ciphertext
	noLine                 // a header, or empty lines: kept, not counted
	without                // has no ciphertext
	skipped                // has one of another key
	done
	failed
)

// item is a line as it stands in the file, its end included.
type item struct {
	raw     []byte
	length  int   // of raw in the input
	line    int64 // from 1
	through int64 // the line that it ends with
	outcome outcome
	err     error // of outcome failed

	ciphertext         string
	at, end            int  // where raw has it
	quote              bool // raw has quotes around it, at and end included
	context, toContext sdk.Context
}

func (it *item) fail(err error) { it.outcome, it.err = failed, err }

// replace puts another ciphertext in the place of the item's. Nothing else of the line
// changes. A ciphertext's text needs no escaping, in JSON or CSV.
func (it *item) replace(ciphertext string) {
	if it.quote {
		ciphertext = `"` + ciphertext + `"`
	}
	it.raw = slices.Concat(it.raw[:it.at], []byte(ciphertext), it.raw[it.end:])
	it.outcome = done
}

// Binding is a field of the context: a constant, or what a line has in a field.
type Binding struct {
	Name  string `json:"name"`
	Value string `json:"value,omitempty"` // the constant
	From  string `json:"from,omitempty"`  // the line's field or column
}

// ParseBindings reads name=value for a constant, and name=.field for what each line
// has in a field or column. A constant that begins with a dot is written with two.
func ParseBindings(pairs []string) ([]Binding, error) {
	all := make([]Binding, 0, len(pairs))
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, fault.New(fault.Usage, "context: %q is not of the form name=value or name=.field", pair)
		}
		if slices.ContainsFunc(all, func(b Binding) bool { return b.Name == name }) {
			return nil, fault.New(fault.Usage, "context: %q is given twice", name)
		}
		b := Binding{Name: name, Value: value}
		if rest, isField := strings.CutPrefix(value, "."); isField {
			b.Value = rest // a constant that begins with a dot
			if !strings.HasPrefix(rest, ".") {
				b.Value, b.From = "", rest
			}
			if rest == "" {
				return nil, fault.New(fault.Usage, "context: %q names no field", pair)
			}
		}
		all = append(all, b)
	}
	return all, nil
}

// bind makes the contexts of an item; value returns a field of its line.
func (c *Config) bind(it *item, value func(field string) (string, error)) (err error) {
	contextOf := func(bindings []Binding) sdk.Context {
		made := sdk.Context{}
		for _, b := range bindings {
			made[b.Name] = b.Value
			if b.From == "" {
				continue
			}
			v, wrong := value(b.From)
			if wrong != nil && err == nil {
				err = wrong
			}
			made[b.Name] = v
		}
		return made
	}
	it.context, it.toContext = contextOf(c.Context), contextOf(c.ToContext)
	return err
}

func missing(field string) error {
	return fault.New(fault.BadRequest, "the line has no %s, which its context is made of", field)
}
