// Package budget bounds what an app may decrypt in a day: operations, distinct
// conversations, and old data. An app that goes beyond it is not busy, it is reading
// out: its decryption is suspended until people have looked into it.
package budget

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/life"
)

// Budget is what an app may decrypt in a day (UTC). Zero fields bound nothing.
type Budget struct {
	Items         int    `json:"items,omitzero"`         // operations
	Conversations int    `json:"conversations,omitzero"` // distinct values of the context field
	Field         string `json:"field,omitempty"`        // "conversation" when empty

	// Age is how old data may be, counted from when its key version ceased to seal: what
	// a version has sealed is at least that old, and what one that still seals has
	// sealed may be of today. Old is how much that is older may be opened all the same.
	Age life.Period `json:"age,omitzero"`
	Old int         `json:"old,omitzero"`
}

// None is how the budget that bounds nothing is written.
const None = "none"

// defaultField is the context field that names the conversation.
const defaultField = "conversation"

// Bounds of a budget. Conversations are remembered until the day is over.
const (
	maxItems         = 1_000_000_000
	maxConversations = 1_000_000
)

var fieldName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// Parse reads items=100000/day,conversations=500/day,age=30d,old=100/day,field=room.
func Parse(text string) (Budget, error) {
	var b Budget
	if text = strings.TrimSpace(text); text == None {
		return b, nil
	}
	count := func(value string, most int) (n int, ok bool) {
		value, _ = strings.CutSuffix(value, "/day")
		n, err := strconv.Atoi(value)
		return n, err == nil && n >= 1 && n <= most
	}
	for part := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		var ok bool
		switch name {
		case "items":
			b.Items, ok = count(value, maxItems)
		case "conversations":
			b.Conversations, ok = count(value, maxConversations)
		case "old":
			b.Old, ok = count(value, maxItems)
		case "field":
			b.Field, ok = value, fieldName.MatchString(value)
		case "age":
			var err error
			b.Age, err = life.ParsePeriod(value)
			ok = err == nil && b.Age > 0
		}
		if !ok {
			return Budget{}, fault.New(fault.BadRequest, "budget: %q is not a part of items=N/day,conversations=N/day,age=30d,old=N/day,field=NAME, or %s", part, None)
		}
	}
	if b.Old != 0 && b.Age == 0 || b.Field != "" && b.Conversations == 0 || b == (Budget{}) {
		return Budget{}, fault.New(fault.BadRequest, "budget: %q: old goes with age, and field with conversations", text)
	}
	return b, nil
}

// String writes the budget as Parse reads it.
func (b Budget) String() string {
	var parts []string
	add := func(n int, form string) {
		if n != 0 {
			parts = append(parts, fmt.Sprintf(form, n))
		}
	}
	add(b.Items, "items=%d/day")
	add(b.Conversations, "conversations=%d/day")
	if b.Age != 0 {
		parts = append(parts, "age="+b.Age.String())
	}
	add(b.Old, "old=%d/day")
	if b.Field != "" {
		parts = append(parts, "field="+b.Field)
	}
	if len(parts) == 0 {
		return None
	}
	return strings.Join(parts, ",")
}

// ConversationField is the context field that names the conversation.
func (b Budget) ConversationField() string {
	if b.Field != "" {
		return b.Field
	}
	return defaultField
}

// older reports whether data of a key version that ceased to seal then is old.
func (b Budget) older(sealedUntil, now time.Time) bool {
	return b.Age != 0 && !sealedUntil.IsZero() && b.Age.After(sealedUntil).Before(now)
}
