// Package policy says who may do what: which operations on which keys (Grants),
// and from which addresses (Whitelist). Nothing is allowed that is not granted.
package policy

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/trikey/trikey/internal/fault"
)

// Op is an operation that can be granted.
type Op string

// The operations. Re-encryption needs both of its grants: one for the key that
// opens, one for the key that seals.
const (
	Encrypt       Op = "encrypt"
	Decrypt       Op = "decrypt"
	ReencryptFrom Op = "reencrypt-from"
	ReencryptTo   Op = "reencrypt-to"
	// DecryptCompromised is needed besides Decrypt or ReencryptFrom to open what a
	// compromised version has sealed.
	DecryptCompromised Op = "decrypt-compromised"
	DataKey            Op = "datakey" // draw data keys; to unwrap one is Decrypt
	Sign               Op = "sign"
	Verify             Op = "verify" // signatures and codes
	Mac                Op = "mac"
)

var ops = []Op{Encrypt, Decrypt, ReencryptFrom, ReencryptTo, DecryptCompromised, DataKey, Sign, Verify, Mac}

// Range is the key indexes From to To, both included.
type Range struct {
	From uint32 `json:"from"`
	To   uint32 `json:"to"`
}

// Ranges is a set of key indexes: sorted, with gaps between its members.
type Ranges []Range

// Contains reports whether the set has the index.
func (s Ranges) Contains(index uint32) bool {
	at, found := slices.BinarySearchFunc(s, index, func(r Range, i uint32) int {
		switch {
		case r.To < i:
			return -1
		case r.From > i:
			return 1
		}
		return 0
	})
	return found && at < len(s)
}

// All reports whether the set has every index.
func (s Ranges) All() bool { return len(s) == 1 && s[0] == Range{0, math.MaxUint32} }

// Add returns the union of both sets.
func (s Ranges) Add(more Ranges) Ranges {
	all := slices.Concat(s, more)
	slices.SortFunc(all, func(a, b Range) int { return int(int64(a.From) - int64(b.From)) })
	var out Ranges
	for _, r := range all {
		if n := len(out); n > 0 && uint64(r.From) <= uint64(out[n-1].To)+1 {
			out[n-1].To = max(out[n-1].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return out
}

// Remove returns the set without the indexes of less.
func (s Ranges) Remove(less Ranges) Ranges {
	out := s
	for _, l := range less {
		var rest Ranges
		for _, r := range out {
			if r.To < l.From || r.From > l.To {
				rest = append(rest, r)
				continue
			}
			if r.From < l.From {
				rest = append(rest, Range{r.From, l.From - 1})
			}
			if r.To > l.To {
				rest = append(rest, Range{l.To + 1, r.To})
			}
		}
		out = rest
	}
	return out
}

// String writes the set as ParseRanges reads it.
func (s Ranges) String() string {
	if s.All() {
		return "*"
	}
	parts := make([]string, len(s))
	for i, r := range s {
		if parts[i] = strconv.FormatUint(uint64(r.From), 10); r.From != r.To {
			parts[i] += "-" + strconv.FormatUint(uint64(r.To), 10)
		}
	}
	return strings.Join(parts, ",")
}

// ParseRanges reads a set like 1-99,200, or * for every index.
func ParseRanges(text string) (Ranges, error) {
	if text == "*" {
		return Ranges{{0, math.MaxUint32}}, nil
	}
	var s Ranges
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 32)
		b, errB := strconv.ParseUint(to, 10, 32)
		if errA != nil || errB != nil || a > b {
			return nil, fault.New(fault.BadRequest, "keys: %q is not a key index, a range like 1-99, or *", part)
		}
		s = s.Add(Ranges{{uint32(a), uint32(b)}})
	}
	return s, nil
}

// Grants is what an app may do: for each operation, on which keys. The zero value
// grants nothing.
type Grants map[Op]Ranges

// Allows reports whether the operation on the key is granted.
func (g Grants) Allows(op Op, index uint32) bool { return g[op].Contains(index) }

// Sees reports whether any operation on the key is granted.
func (g Grants) Sees(index uint32) bool {
	return AnyOp(func(op Op) bool { return g.Allows(op, index) })
}

// AnyOp reports whether f is true of some operation.
func AnyOp(f func(Op) bool) bool { return slices.ContainsFunc(ops, f) }

// Ops returns every operation that can be granted.
func Ops() []Op { return slices.Clone(ops) }

// Add returns the grants with those of more added.
func (g Grants) Add(more Grants) Grants { return g.merge(more, Ranges.Add) }

// Remove returns the grants without those of less.
func (g Grants) Remove(less Grants) Grants { return g.merge(less, Ranges.Remove) }

func (g Grants) merge(other Grants, f func(Ranges, Ranges) Ranges) Grants {
	out := maps.Clone(g)
	if out == nil {
		out = Grants{}
	}
	for op, ranges := range other {
		if out[op] = f(out[op], ranges); len(out[op]) == 0 {
			delete(out, op)
		}
	}
	return out
}

// Strings writes the grants, as ParseGrants reads each, operations with the same
// keys together.
func (g Grants) Strings() []string {
	byKeys := map[string][]string{}
	var order []string
	for _, op := range ops {
		if len(g[op]) == 0 {
			continue
		}
		keys := g[op].String()
		if byKeys[keys] == nil {
			order = append(order, keys)
		}
		byKeys[keys] = append(byKeys[keys], string(op))
	}
	out := make([]string, len(order))
	for i, keys := range order {
		out[i] = fmt.Sprintf("keys=%s;ops=%s", keys, strings.Join(byKeys[keys], ","))
	}
	return out
}

// ParseGrants reads a rule like keys=1-99,200;ops=encrypt,decrypt. The operation
// reencrypt stands for both of its ends.
func ParseGrants(rule string) (Grants, error) {
	var keys Ranges
	var names []string
	for part := range strings.SplitSeq(rule, ";") {
		field, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		var err error
		switch {
		case field == "keys" && keys == nil:
			if keys, err = ParseRanges(value); err != nil {
				return nil, err
			}
		case field == "ops" && names == nil:
			names = strings.Split(value, ",")
		default:
			return nil, badRule(rule)
		}
	}
	if keys == nil || names == nil {
		return nil, badRule(rule)
	}
	g := Grants{}
	for _, name := range names {
		expanded, err := ParseOp(strings.TrimSpace(name))
		if err != nil {
			return nil, err
		}
		for _, op := range expanded {
			g[op] = keys
		}
	}
	return g, nil
}

// ParseOp reads the name of an operation; reencrypt stands for both of its ends.
func ParseOp(name string) ([]Op, error) {
	switch op := Op(name); {
	case name == "reencrypt":
		return []Op{ReencryptFrom, ReencryptTo}, nil
	case slices.Contains(ops, op):
		return []Op{op}, nil
	}
	return nil, fault.New(fault.BadRequest, "ops: unknown operation %q; known: %s", name, known())
}

func known() string {
	names := make([]string, len(ops))
	for i, op := range ops {
		names[i] = string(op)
	}
	return strings.Join(names, ", ")
}

func badRule(rule string) error {
	return fault.New(fault.BadRequest, "grant: %q is not of the form keys=1-99,200;ops=encrypt,decrypt", rule)
}
