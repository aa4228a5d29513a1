// Package token issues, verifies and revokes Trikey's access tokens.
//
// A token is a JWT (RFC 7519) with the profile of RFC 9068: typ at+jwt, signed with
// Ed25519 (RFC 8037) by a business key that the machine alone can use. It says who it is
// for and of which class. Classes are never taken for one another: an app's token opens no
// admin route, and a user's no route of apps.
//
// A token is believed until it expires, unless it was revoked: by its id, or with every
// other one of its app, user or person that was issued up to a moment. Revocations are
// sealed records of the key store; every node follows them.
package token

import (
	"slices"
	"strings"
	"time"

	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/policy"
)

// Class is what a token is good for.
type Class string

// The classes.
const (
	App     Class = "app"     // an app, on the data plane
	User    Class = "user"    // a capability that an app made for one of its users: some conversations, some operations
	Admin   Class = "admin"   // a person, for management
	Auditor Class = "auditor" // a person, who looks at what was done
)

// ScopeAll is the scope of an app's token that allows what the app is granted.
const ScopeAll = "crypto"

// ConversationField is the field of a context that a user's token is bound by.
const ConversationField = "conversation"

// Claims are what a token says (RFC 9068 section 2.2).
type Claims struct {
	Issuer    string `json:"iss"`
	Audience  string `json:"aud"`
	Subject   string `json:"sub"` // the app's AppKey, the user, or the person
	Expires   int64  `json:"exp"` // Unix time in seconds, like the two below
	Issued    int64  `json:"iat"`
	NotBefore int64  `json:"nbf"`
	ID        string `json:"jti"`
	ClientID  string `json:"client_id,omitempty"` // the AppKey; none of a person's
	Scope     string `json:"scope"`               // operations, apart by spaces, or ScopeAll
	Class     Class  `json:"cls"`

	// Of users' tokens.
	Conversations []string `json:"conversations,omitempty"`
	Keys          string   `json:"keys,omitempty"` // as policy.ParseRanges reads it; "" is every key that the app is granted
}

// Token is a token that was verified. Tokens are shared and never changed in place.
type Token struct {
	Claims

	operations []policy.Op   // nil: all
	keys       policy.Ranges // nil: all
	keyID      string
}

// Require refuses a token of any other class than those.
func (t *Token) Require(classes ...Class) error {
	if slices.Contains(classes, t.Class) {
		return nil
	}
	names := make([]string, len(classes))
	for i, c := range classes {
		names[i] = string(c)
	}
	return fault.New(fault.Forbidden, "this is a token of the class %s; here only tokens of the class %s are taken", t.Class, strings.Join(names, " or "))
}

// Permits reports whether the token leaves its app the operation on the key of an index.
// It grants nothing: what the app may not do, its tokens may not.
func (t *Token) Permits(op policy.Op, index uint32) bool {
	return t.permitsOp(op) && (t.keys == nil || t.keys.Contains(index))
}

// PermitsAll reports whether the token leaves its app the operation on every key.
func (t *Token) PermitsAll(op policy.Op) bool {
	return t.permitsOp(op) && (t.keys == nil || t.keys.All())
}

func (t *Token) permitsOp(op policy.Op) bool {
	return t.operations == nil || slices.Contains(t.operations, op)
}

// Within reports whether a context names a conversation of the token's, as
// fault.Forbidden where it does not. It never repeats a value.
func (t *Token) Within(c envelope.Context) error {
	if t.Class != User {
		return nil
	}
	if id, ok := c[ConversationField]; ok && slices.Contains(t.Conversations, id) {
		return nil
	}
	return fault.New(fault.Forbidden, "context.%s: not one of the conversations that the user's token is for", ConversationField)
}

// userOperations are what a user's token may be for: those that have a context, which
// names the conversation.
var userOperations = []policy.Op{policy.Encrypt, policy.Decrypt, policy.ReencryptFrom, policy.ReencryptTo, policy.DataKey}

// ParseScope reads a scope (RFC 6749 section 3.3): operations as grants name them, or
// ScopeAll alone, which is nil.
func ParseScope(scope string) ([]policy.Op, error) {
	if scope == ScopeAll {
		return nil, nil
	}
	out := []policy.Op{}
	for name := range strings.FieldsSeq(scope) {
		ops, err := policy.ParseOp(name)
		if err != nil {
			return nil, fault.New(fault.BadRequest, "scope: %v, or %s alone for all that the app is granted", err, ScopeAll)
		}
		for _, op := range ops {
			if !slices.Contains(out, op) {
				out = append(out, op)
			}
		}
	}
	if len(out) == 0 {
		return nil, fault.New(fault.BadRequest, "scope: names no operation")
	}
	return out, nil
}

func formatScope(ops []policy.Op) string {
	if ops == nil {
		return ScopeAll
	}
	names := make([]string, len(ops))
	for i, op := range ops {
		names[i] = string(op)
	}
	return strings.Join(names, " ")
}

// Bounds of how long tokens last.
const (
	MinTTL   = time.Minute
	MaxApp   = time.Hour
	MaxUser  = 24 * time.Hour
	MaxAdmin = 2 * time.Hour // auditors too
)

func (c Class) most() time.Duration {
	switch c {
	case App:
		return MaxApp
	case User:
		return MaxUser
	case Admin, Auditor:
		return MaxAdmin
	}
	return 0
}

// MaxSize is the most characters that a token has.
const MaxSize = 16 << 10

// Bounds of what a user's token names.
const (
	MaxConversations = 64
	MaxName          = 128 // bytes of a conversation's id, or a user's
)
