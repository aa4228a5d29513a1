package token

import (
	"crypto/sha256"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/policy"
)

// Type is the typ of the header (RFC 9068 section 2.1): no other JWT that the same key
// might sign is taken for an access token.
const Type = "at+jwt"

// algorithms is the one that is taken, whatever a header says (RFC 8725 section 3.1).
var algorithms = []jose.SignatureAlgorithm{jose.EdDSA}

func invalid(why string) error {
	return fault.New(fault.Unauthorized, "the token is not valid: %s", why)
}

// Verify returns a token that is good now, whatever its class: callers go on with Require.
func (a *Authority) Verify(compact string) (*Token, error) {
	if a.cfg.Issuer == "" {
		return nil, errOff
	}
	key := sha256.Sum256([]byte(compact))
	t, known := a.verified.Get(key)
	if !known {
		var err error
		if t, err = a.open(compact); err != nil {
			return nil, err
		}
		a.verified.Add(key, t)
	}
	if err := a.Alive(t); err != nil {
		return nil, err
	}
	return t, nil
}

// Inspect returns what a token says that was issued here, and why it is no longer good,
// nil when it is. It does not trust what was not signed.
func (a *Authority) Inspect(compact string) (t *Token, dead, err error) {
	if a.cfg.Issuer == "" {
		return nil, nil, errOff
	}
	if t, err = a.open(compact); err != nil {
		return nil, nil, err
	}
	return t, a.Alive(t), nil
}

// open checks all of a token that does not change with time.
func (a *Authority) open(compact string) (*Token, error) {
	if len(compact) > MaxSize {
		return nil, invalid("it is too long")
	}
	signed, err := jose.ParseSignedCompact(compact, algorithms)
	if err != nil || len(signed.Signatures) != 1 {
		return nil, invalid("it is not a JWS of EdDSA in compact serialisation")
	}
	h := signed.Signatures[0].Protected
	// Keys come from nowhere but the index: jwk, jku and x5u are no reason to look.
	if len(h.ExtraHeaders) != 1 || h.ExtraHeaders[jose.HeaderType] != Type || h.JSONWebKey != nil || h.Nonce != "" {
		return nil, invalid("its header has other parameters than alg, kid and typ " + Type)
	}
	public, _, ok := a.keys.Public(h.KeyID)
	if !ok {
		return nil, errKey
	}
	payload, err := signed.Verify(public)
	if err != nil {
		return nil, invalid("its signature is wrong")
	}
	t := &Token{keyID: h.KeyID}
	if err := json.Unmarshal(payload, &t.Claims); err != nil { // one claim twice too
		return nil, invalid("its claims cannot be read")
	}
	return t, a.read(t)
}

var errKey = invalid("it was signed by no key that signs tokens here now")

// read checks the claims, and takes out of them what is looked at for each call.
func (a *Authority) read(t *Token) (err error) {
	lasts := time.Duration(t.Expires-t.Issued) * time.Second
	switch {
	case t.Issuer != a.cfg.Issuer:
		return invalid("it was issued elsewhere")
	case t.Audience != a.cfg.Audience:
		return invalid("it is for another service")
	case t.Class.most() == 0:
		return invalid("its class is none that there is")
	case t.ID == "" || t.Subject == "" || t.Expires <= 0 || t.Issued <= 0 || t.NotBefore <= 0:
		return invalid("a claim is missing")
	case lasts > t.Class.most():
		return invalid("it lasts longer than tokens of its class may")
	case (t.Class == App || t.Class == User) != (t.ClientID != ""):
		return invalid("its client_id does not go with its class")
	case t.Class == User && len(t.Conversations) == 0:
		return invalid("it names no conversation")
	}
	if t.Class == App || t.Class == User {
		if t.operations, err = ParseScope(t.Scope); err != nil {
			return invalid("its scope names an operation that there is not")
		}
	}
	if t.Class == User && checkUserOperations(t.operations) != nil {
		return invalid("its scope is none of a user's")
	}
	if t.Keys != "" {
		if t.keys, err = policy.ParseRanges(t.Keys); err != nil {
			return invalid("its keys cannot be read")
		}
	}
	return nil
}

// Alive reports why a token that was verified is no longer good, nil when it is.
func (a *Authority) Alive(t *Token) error {
	now := a.now()
	_, ended, ok := a.keys.Public(t.keyID)
	switch {
	case !ok:
		return errKey
	case now.Unix() >= t.Expires:
		return errExpired
	case t.NotBefore > now.Add(skew).Unix(), t.Issued > now.Add(drift).Unix():
		return invalid("it is of the future; are the clocks right?")
	case !ended.IsZero() && t.Issued > ended.Add(drift).Unix():
		return errKey
	case a.revoked.has(&t.Claims):
		return errRevoked
	}
	return nil
}

var (
	errExpired = invalid("it has expired; get another")
	errRevoked = invalid("it was revoked; get another")
)
