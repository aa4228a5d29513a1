package token

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/policy"
	"github.com/trikey/trikey/kms/record"
)

// Config says how tokens are issued. It must be the same on every node that shares a
// key store.
type Config struct {
	Issuer   string // https URL of the service as its clients reach it; "": no tokens are issued or taken
	Audience string // Issuer when empty
	Key      string // name of the key that signs; KeyName when empty

	// How long tokens last that nobody said otherwise of; one hour each when zero.
	AppTTL, UserTTL, AdminTTL time.Duration
}

// KeyName is the usual name of the key that signs tokens.
const KeyName = "trikey-tokens"

// Filled returns the configuration with what was left out.
func (c Config) Filled() Config {
	c.Audience, c.Key = cmp.Or(c.Audience, c.Issuer), cmp.Or(c.Key, KeyName)
	c.AppTTL, c.UserTTL, c.AdminTTL = cmp.Or(c.AppTTL, time.Hour), cmp.Or(c.UserTTL, time.Hour), cmp.Or(c.AdminTTL, time.Hour)
	return c
}

// Check reports what is wrong with a configuration that is filled.
func (c Config) Check() error {
	if u, err := url.Parse(c.Issuer); c.Issuer != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "") {
		return fault.New(fault.BadConfig, "tokens.issuer: %q is not like https://keys.example.com, with nothing after the host (RFC 8414)", c.Issuer)
	}
	for _, t := range []struct {
		key  string
		ttl  time.Duration
		most time.Duration
	}{{"app_ttl", c.AppTTL, MaxApp}, {"user_ttl", c.UserTTL, MaxUser}, {"admin_ttl", c.AdminTTL, MaxAdmin}} {
		if t.ttl < MinTTL || t.ttl > t.most {
			return fault.New(fault.BadConfig, "tokens.%s: %s is not from %s to %s", t.key, t.ttl, MinTTL, t.most)
		}
	}
	return nil
}

// Keys are the keys that sign tokens.
type Keys interface {
	// Sign returns a JWS in compact serialisation over a payload, with that typ.
	Sign(ctx context.Context, typ string, payload []byte) (string, error)

	// Public returns the public key of a key id, and when it ceased to sign, zero while
	// it does. It knows no key that signs anything but tokens, and none whose
	// signatures are no longer believed.
	Public(keyID string) (key ed25519.PublicKey, ended time.Time, ok bool)
}

// Authority issues, verifies and revokes tokens.
type Authority struct {
	cfg     Config
	keys    Keys
	keep    *record.Keeper
	now     func() time.Time
	revoked revocations

	// verified has tokens whose signature and claims were found good, by digest. When
	// they expire, are revoked or their key is no longer good is looked at each time.
	verified *lru.Cache[digest, *Token]
}

type digest = [sha256.Size]byte

// maxVerified bounds how many tokens need no signature to be checked again.
const maxVerified = 8192

// New returns an authority. The configuration is filled.
func New(cfg Config, keys Keys, keep *record.Keeper, now func() time.Time) *Authority {
	verified, _ := lru.New[digest, *Token](maxVerified) // fails for sizes below 1 only
	return &Authority{cfg: cfg, keys: keys, keep: keep, now: now, verified: verified, revoked: newRevocations()}
}

// Issuer returns the issuer of all tokens.
func (a *Authority) Issuer() string { return a.cfg.Issuer }

// skew is how far the clocks of nodes may be apart.
const skew = 30 * time.Second

// drift is how far ahead of a node's clock iat may be: a token that is issued right after
// a revocation has an iat behind the watermark, which is ahead of its node's clock.
const drift = 2*skew + time.Second

// Request asks for a token.
type Request struct {
	Class    Class
	Subject  string        // User: the user. Admin, Auditor: the person. App: nothing
	ClientID string        // App, User: the AppKey
	TTL      time.Duration // 0: the usual one of the class
	Until    time.Time     // when it expires at the latest, whatever TTL says; zero: no such time

	Operations    []policy.Op   // App: nil is all. User: at least one
	Conversations []string      // User: at least one
	Keys          policy.Ranges // User: nil is every key that the app is granted
}

// Minted is a new token. It is a secret of whoever it was made for.
type Minted struct {
	Token string
	Claims
}

// Mint issues a token.
func (a *Authority) Mint(ctx context.Context, r Request) (Minted, error) {
	if a.cfg.Issuer == "" {
		return Minted{}, errOff
	}
	if err := a.check(&r); err != nil {
		return Minted{}, err
	}
	now := a.now()
	c := Claims{
		Issuer: a.cfg.Issuer, Audience: a.cfg.Audience, Subject: r.Subject, ClientID: r.ClientID, Class: r.Class, ID: newID(),
		Scope: formatScope(r.Operations), Conversations: r.Conversations, Expires: now.Add(r.TTL).Unix(), NotBefore: now.Unix(),
	}
	if r.Keys != nil {
		c.Keys = r.Keys.String()
	}
	c.Issued = max(now.Unix(), a.revoked.watermark(&c)+1)
	payload, err := record.JSON(c)
	if err != nil {
		return Minted{}, err
	}
	signed, err := a.keys.Sign(ctx, Type, payload)
	if err == nil && len(signed) > MaxSize {
		err = fault.New(fault.TooLarge, "the token would have %d characters, at most %d are allowed; name fewer conversations", len(signed), MaxSize)
	}
	return Minted{signed, c}, err
}

var errOff = fault.New(fault.Forbidden, "this service issues and takes no tokens: tokens.issuer is not set in its configuration")

func newID() string {
	var raw [15]byte
	_, _ = rand.Read(raw[:]) // never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(raw[:]))
}

// check checks a request, and puts in how long the token shall last.
func (a *Authority) check(r *Request) error {
	usual := map[Class]time.Duration{App: a.cfg.AppTTL, User: a.cfg.UserTTL, Admin: a.cfg.AdminTTL, Auditor: a.cfg.AdminTTL}[r.Class]
	if r.TTL == 0 {
		r.TTL = usual
	}
	if left := r.Until.Sub(a.now()); !r.Until.IsZero() && left < r.TTL {
		r.TTL = left
	}
	if most := r.Class.most(); r.TTL < MinTTL || r.TTL > most {
		return fault.New(fault.BadRequest, "ttl: %s is not from %s to %s", r.TTL, MinTTL, most)
	}
	switch r.Class {
	case App:
		r.Subject = r.ClientID
		return nil
	case Admin, Auditor:
		return checkName("subject", r.Subject)
	}
	if err := checkName("user", r.Subject); err != nil {
		return err
	}
	if len(r.Conversations) == 0 || len(r.Conversations) > MaxConversations {
		return fault.New(fault.BadRequest, "conversations: %d are named; a user's token is for 1 to %d", len(r.Conversations), MaxConversations)
	}
	for _, id := range r.Conversations {
		if err := checkName("conversations", id); err != nil {
			return err
		}
	}
	return checkUserOperations(r.Operations)
}

func checkName(field, name string) error {
	if name == "" || len(name) > MaxName || !utf8.ValidString(name) {
		return fault.New(fault.BadRequest, "%s: must be text of 1 to %d bytes", field, MaxName)
	}
	return nil
}

func checkUserOperations(ops []policy.Op) error {
	if len(ops) == 0 {
		return fault.New(fault.BadRequest, "operations: required; a user's token can be for %s", formatScope(userOperations))
	}
	for _, op := range ops {
		if !slices.Contains(userOperations, op) {
			return fault.New(fault.BadRequest, "operations: a user's token cannot be for %s, only for %s", op, formatScope(userOperations))
		}
	}
	return nil
}
