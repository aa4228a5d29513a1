package kms

import (
	"context"
	"crypto/ed25519"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/record"
	"github.com/trikey/trikey/kms/token"
)

// Tokens returns the authority that issues, verifies and revokes tokens.
func (s *Service) Tokens() (*token.Authority, error) {
	l, err := s.serving()
	if err != nil {
		return nil, err
	}
	return l.tokens, nil
}

// within refuses what a user's token is not for: calls whose context names none of its
// conversations, and those that have no context.
func (c *Call) within(t *token.Token) error {
	if t == nil || t.Class != token.User {
		return nil
	}
	switch c.Kind {
	case hsm.Encrypt, hsm.Decrypt, hsm.DataKey, hsm.SealSegment, hsm.OpenSegment:
		return t.Within(c.Context)
	case hsm.Reencrypt:
		if err := t.Within(c.Context); err != nil {
			return err
		}
		return t.Within(c.ToContext)
	}
	return fault.New(fault.Forbidden, "a user's token is for what has a conversation: encrypt, decrypt, reencrypt and datakey")
}

// tokenKeys are the versions of the key that signs tokens. The service makes that key
// itself, at the first token; one that somebody made or imported signs none, so that
// nobody has ever had it.
type tokenKeys struct {
	s *Service
	l *loaded
}

// How the key of tokens lives, until an administrator says otherwise: a version that has
// ceased to sign goes when its last token has long expired.
const (
	tokenRotate = 90 * 24 * life.Period(time.Hour)
	tokenRetain = 7 * 24 * life.Period(time.Hour)
)

// key returns the key that signs, and makes it where there is none.
func (t *tokenKeys) key(ctx context.Context) (*Key, error) {
	name := t.s.cfg.Tokens.Key
	for {
		k := t.l.keys.named(name)
		switch {
		case k != nil && !k.Tokens:
			return nil, fault.New(fault.Conflict, "the key %q was not made by the service to sign tokens; set tokens.key to a name that no key has", name)
		case k != nil:
			return k, nil
		}
		n := NewKey{
			Index: t.index(), Name: name, Purpose: hsm.PurposeSign, Algorithm: alg.Ed25519, Published: true, tokens: true,
			Settings: Settings{Description: "signs access tokens", Rotate: tokenRotate, Retain: tokenRetain},
		}
		err := t.s.cfg.Record(ctx, "create", n.Index, func() error {
			_, err := t.s.CreateKey(ctx, steward, n)
			return err
		})
		// Another node may have been faster; its key comes by the watch.
		if errors.Is(err, fault.Conflict) && t.l.keys.named(name) == nil && t.s.pause(ctx) {
			continue
		}
		if err != nil && t.l.keys.named(name) == nil {
			return nil, err
		}
	}
}

// index is the highest that is free: administrators count from the other end.
func (t *tokenKeys) index() uint32 {
	for below := range uint32(1 << 16) {
		if index := math.MaxUint32 - below; t.l.keys.get(index) == nil && t.l.ranges.of(index) == "" {
			return index
		}
	}
	return 0 // where an app has reserved all of those: the lowest that is free
}

// Sign has the machine sign a token.
func (t *tokenKeys) Sign(ctx context.Context, typ string, payload []byte) (string, error) {
	for try := 0; ; try++ {
		k, err := t.key(ctx)
		if err != nil {
			return "", err
		}
		c := Call{Kind: hsm.Sign, Input: payload, JWS: &JWS{Type: typ}}
		op := hsm.Op{Kind: hsm.Sign}
		version, err := c.JWS.prepare(&c, k, &op)
		if err != nil {
			return "", err
		}
		v, err := k.keyed(hsm.Sign, version, nil)
		if err != nil {
			return "", err
		}
		if op.Key, err = v.key(); err != nil {
			return "", err
		}
		c.sealedBy, c.sealedVer = k, version
		ops := []hsm.Op{op}
		if err := t.s.cfg.Machine.Do(ctx, ops); err != nil {
			return "", err
		}
		if errors.Is(ops[0].Err, fault.RootGeneration) && try == 0 {
			continue // the root was rotated after the key was looked up
		}
		c.finish(t.l, &ops[0], t.s.cfg.Now().Unix())
		return string(c.Output), c.Err
	}
}

// Public returns the public key of a key id.
func (t *tokenKeys) Public(keyID string) (key ed25519.PublicKey, ended time.Time, ok bool) {
	left, right, _ := strings.Cut(keyID, ".")
	index, badIndex := strconv.ParseUint(left, 10, 32)
	version, badVersion := strconv.ParseUint(right, 10, 32)
	if badIndex != nil || badVersion != nil {
		return nil, ended, false
	}
	k := t.l.keys.get(uint32(index))
	if k == nil || !k.Tokens || k.Algorithm != alg.Ed25519 || k.Suspended != nil || k.DestroyAt != nil {
		return nil, ended, false
	}
	v := k.Version(uint32(version))
	if v == nil || v.Imported || v.State != life.Active && v.State != life.Deactivated || !v.marks().DestroyAt.IsZero() {
		return nil, ended, false
	}
	return v.Public, v.marks().Ended, true
}

// pruneTokens deletes revocations of tokens that have expired. Of several nodes only the
// elected one does.
func (s *Service) pruneTokens(ctx context.Context, l *loaded) (forgotten int, err error) {
	for {
		names := l.tokens.Stale()
		if len(names) == 0 {
			return forgotten, nil
		}
		if elected, err := s.lease.Hold(ctx); err != nil || !elected {
			return forgotten, err
		}
		n, err := l.tokens.Prune(ctx, names)
		forgotten += n
		switch {
		case errors.Is(err, keystore.ErrConflict), errors.Is(err, record.ErrRotated), err == nil && n == 0:
			return forgotten, nil // another node has changed them; the next time
		case err != nil:
			return forgotten, err
		}
	}
}
