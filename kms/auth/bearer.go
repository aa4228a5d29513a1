package auth

import (
	"net/netip"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/policy"
	"github.com/trikey/trikey/kms/token"
)

// Bearer is the method of a token that the service issued (RFC 6750).
const Bearer Method = "bearer"

// Admit returns the app that a token was issued to as a caller, if it may still call, and
// from that address. Its token narrows what it may do. A person's token is no app's. As
// with Authenticate, an app that is known is returned beside the error.
func (a *Apps) Admit(t *token.Token, from netip.Addr) (*Caller, error) {
	if err := t.Require(token.App, token.User); err != nil {
		return nil, err
	}
	a.mu.RLock()
	app := a.byKey[t.ClientID]
	a.mu.RUnlock()
	c := &Caller{App: app, Method: Bearer, Token: t, From: from}
	switch {
	case app == nil:
		return nil, fault.New(fault.Unauthorized, "the token is of an app that there is not")
	case app.Disabled:
		return c, fault.New(fault.Unauthorized, "the app that the token is of is disabled")
	}
	return c, c.allows()
}

// Class returns what class of token the caller could have: an app that shows its own
// credentials is more than any token.
func (c *Caller) Class() token.Class {
	if c.Token == nil {
		return token.App
	}
	return c.Token.Class
}

// Allows reports whether the caller may do the operation on the key of an index: its app
// is granted that, and its token leaves it.
func (c *Caller) Allows(op policy.Op, index uint32) bool {
	return c.Grants.Allows(op, index) && (c.Token == nil || c.Token.Permits(op, index))
}

// AllowsAll reports whether the caller may do the operation on every key.
func (c *Caller) AllowsAll(op policy.Op) bool {
	return c.Grants[op].All() && (c.Token == nil || c.Token.PermitsAll(op))
}

// Sees reports whether the caller may do anything with the key of an index.
func (c *Caller) Sees(index uint32) bool {
	return policy.AnyOp(func(op policy.Op) bool { return c.Allows(op, index) })
}

// SeesAll reports whether there is an operation that the caller may do on every key.
func (c *Caller) SeesAll() bool { return policy.AnyOp(c.AllowsAll) }
