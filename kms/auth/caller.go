package auth

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/token"
)

// Method is a way in which a caller shows which app it is.
type Method string

// The methods.
const (
	Basic       Method = "basic"       // AppKey and AppSecret (RFC 7617)
	Signature   Method = "signature"   // HTTP Message Signatures by the AppSecret (RFC 9421)
	Certificate Method = "certificate" // TLS client certificate (RFC 8446, section 4.4.2), known by its SPKI
)

// Caller is who makes calls of the data plane: an app, and how it was recognised.
type Caller struct {
	*App
	Method Method
	Token  *token.Token // of the method Bearer: it narrows what the app may do; nil otherwise
	From   netip.Addr   // where the call comes from

	secret uint32 // number of the one that was shown
	pin    SPKI   // of the certificate that was shown
}

// IsAppKey reports whether a text is what an AppKey looks like. Anything else that was
// given as one may be a secret in the wrong place.
func IsAppKey(text string) bool {
	rest, ok := strings.CutPrefix(text, "ak")
	return ok && len(rest) == 16 && strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// errUnauthorized is the same for an AppKey that is not known, a secret that is
// wrong and an app that is disabled.
var errUnauthorized = fault.New(fault.Unauthorized, "the AppKey or AppSecret is not valid")

// errSignature is the same for all of these too.
var errSignature = fault.New(fault.SignatureInvalid, "the signature is not one by a secret of the AppKey that keyid names, over what arrived here; "+
	"docs/api.md says what is signed")

var errExpired = fault.New(fault.Unauthorized, "the AppSecret has expired; have a new one made (trikey app rotate-secret)")

// Authenticate returns the app of an AppKey as a caller, if the secret is one of its and
// the address is on its whitelist. An app that is known and may not call is returned
// beside the error.
func (a *Apps) Authenticate(appKey, secret string, from netip.Addr) (*Caller, error) {
	c := a.candidates(appKey)
	return a.recognise(&c, c.bySecret(secret), Basic, from, errUnauthorized)
}

// AuthenticateMAC is Authenticate for a message that was authenticated by HMAC using
// SHA-256 with the secret, as the signature of a request is.
func (a *Apps) AuthenticateMAC(appKey string, message, mac []byte, from netip.Addr) (*Caller, error) {
	c := a.candidates(appKey)
	return a.recognise(&c, c.byMAC(message, mac), Signature, from, errSignature)
}

// recognise is what every method by a secret has in common, once it knows which one it is.
func (a *Apps) recognise(c *candidates, match int, method Method, from netip.Addr, unknown error) (*Caller, error) {
	if c.app == nil || match < 0 || c.app.Disabled {
		return nil, unknown
	}
	now := a.now()
	caller := &Caller{App: c.app, Method: method, From: from, secret: c.numbers[match]}
	if at := c.expires[match]; !at.IsZero() && !now.Before(at) {
		return caller, errExpired
	}
	if err := caller.allows(); err != nil {
		return caller, err
	}
	c.secrets[match].used.Store(now.Unix())
	return caller, nil
}

// Still returns a caller of before with its app as that is by now, if what the caller has
// shown still counts and the address is still on the whitelist. Of a token Alive tells.
func (a *Apps) Still(c *Caller) (*Caller, error) {
	now := *c
	a.mu.RLock()
	now.App = a.byName[c.Name]
	pin := a.pins[c.pin]
	a.mu.RUnlock()
	shown := func(s Secret) bool { return s.Number == c.secret && (s.Expires.IsZero() || a.now().Before(s.Expires)) }
	switch {
	case now.App == nil || now.Disabled || now.AppKey != c.AppKey:
		return nil, fault.New(fault.Unauthorized, "the app %s was disabled meanwhile", c.Name)
	case c.Method == Certificate && (pin == nil || pin.App != c.Name):
		return nil, errUnknownCertificate
	case (c.Method == Basic || c.Method == Signature) && !slices.ContainsFunc(now.Secrets, shown):
		return nil, fault.New(fault.Unauthorized, "the AppSecret was dropped, or has expired, meanwhile; begin again with the newest one")
	}
	return &now, now.allows()
}

// allows reports whether an app may call from where it does.
func (c *Caller) allows() error {
	if !c.Whitelist.Allows(c.From) {
		return fault.New(fault.IPNotAllowed, "the address %s is not on the app's whitelist", c.From.Unmap())
	}
	return nil
}
