package kms

import (
	"context"
	"errors"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/policy"
)

// Call is one operation of the data plane. Ciphertexts are in binary form.
type Call struct {
	Kind      hsm.Kind // Encrypt, Decrypt, Reencrypt, DataKey, Mac, VerifyMac, Sign, Verify or Random; Stream makes those of its segments
	Key       string   // index or name. Decrypt: the same, or "" for whatever the ciphertext names
	ToKey     string   // Reencrypt: index or name; "" is the ciphertext's own key
	Algorithm string   // Encrypt, Reencrypt: "" is the sealing key's own; under the same key, the ciphertext's
	Context   envelope.Context
	ToContext envelope.Context // Reencrypt
	Input     []byte

	Version   uint32 // VerifyMac, Verify: the key version; 0 is the newest
	Signature []byte // VerifyMac: the code. Verify: the signature
	Size      int    // DataKey, Random: bytes
	Reveal    bool   // DataKey: give Plain too
	Index     bool   // Mac, VerifyMac: of Context and Input, as a blind index
	JWS       *JWS   // Sign, Verify: as a JSON Web Signature

	segment hsm.Segment // of a stream
	spent   bool        // it is counted in its app's budget

	// Results.
	Plain        []byte // DataKey
	Output       []byte // appended to what the caller left here
	KeyIndex     uint32
	KeyVersion   uint32
	KeyAlgorithm alg.ID // of Output, or of the ciphertext that was opened
	FromIndex    uint32 // Reencrypt: what Input names
	FromVersion  uint32
	Err          error

	// The keys of the call, to be counted when it is done.
	sealedBy, openedBy   *Key
	sealedVer, openedVer uint32
}

// Do carries out calls for an app. Each has its own result or error. The error
// of Do is about all of them: nothing was done.
func (s *Service) Do(ctx context.Context, caller *auth.Caller, calls []Call) error {
	l, err := s.serving()
	if err != nil {
		return err
	}
	if err := s.cfg.Limits.Take(caller.Name, caller.Limit, caller.From, len(calls)); err != nil {
		return err
	}
	if l.activity.Seen(caller.Name, caller.From, len(calls), s.cfg.Now()) {
		l.keepSoon()
	}
	all := make([]int, len(calls))
	for i := range all {
		all[i] = i
	}
	stale, err := s.do(ctx, l, caller, calls, all)
	if err == nil && len(stale) > 0 {
		// The root was rotated after the keys were looked up: the index has them as
		// the machine's root wraps them now.
		_, err = s.do(ctx, l, caller, calls, stale)
	}
	return err
}

// do carries out some of the calls, and returns those whose keys were wrapped by
// another root than the machine's.
func (s *Service) do(ctx context.Context, l *loaded, caller *auth.Caller, calls []Call, which []int) (stale []int, err error) {
	ops := make([]hsm.Op, 0, len(which))
	at := make([]int, 0, len(which)) // the call of each operation
	for _, i := range which {
		c := &calls[i]
		op, err := c.prepare(l, caller, s.cfg.Now)
		if err == nil && c.KeyIndex != 0 {
			err = s.cfg.Limits.TakeKey(c.KeyIndex)
		}
		if err != nil {
			c.Err = err
			continue
		}
		ops = append(ops, op)
		at = append(at, i)
	}
	if err := s.cfg.Machine.Do(ctx, ops); err != nil {
		return nil, err
	}
	now := s.cfg.Now().Unix()
	for j := range ops {
		calls[at[j]].finish(l, &ops[j], now)
		if errors.Is(ops[j].Err, fault.RootGeneration) {
			stale = append(stale, at[j])
		}
	}
	return stale, nil
}

// prepare finds the call's keys, checks its grants, and makes the machine's
// operation of it.
func (c *Call) prepare(l *loaded, caller *auth.Caller, now func() time.Time) (hsm.Op, error) {
	if err := errors.Join(c.Context.Validate(), c.ToContext.Validate()); err != nil {
		return hsm.Op{}, err
	}
	if err := c.within(caller.Token); err != nil {
		return hsm.Op{}, err
	}
	op := hsm.Op{Kind: c.Kind, Input: c.Input, Output: c.Output, Context: c.Context.AppendCanonical(nil), Segment: c.segment}
	var err error
	switch c.Kind {
	case hsm.Encrypt:
		op.Key, op.Algorithm, err = c.sealing(l, caller, policy.Encrypt, c.Key, c.Context)
	case hsm.Decrypt:
		op.Key, err = c.decrypting(l, caller, now)
	case hsm.Reencrypt:
		if op.Key, err = c.opening(l, caller, policy.ReencryptFrom); err != nil {
			return op, err
		}
		to := c.ToKey
		if to == "" {
			to = indexRef(c.KeyIndex)
		}
		from, suite := c.KeyIndex, c.KeyAlgorithm
		op.ToContext = c.ToContext.AppendCanonical(nil)
		op.To, op.Algorithm, err = c.sealing(l, caller, policy.ReencryptTo, to, c.ToContext)
		if c.Algorithm == "" && c.KeyIndex == from { // the same key: what the ciphertext had
			op.Algorithm, c.KeyAlgorithm = suite, suite
		}
	case hsm.DataKey:
		op.Size, op.Reveal = c.Size, c.Reveal
		op.Key, op.Algorithm, err = c.sealing(l, caller, policy.DataKey, c.Key, c.Context)
	case hsm.Random:
		op.Size = c.Size
	case hsm.Mac, hsm.VerifyMac, hsm.Sign, hsm.Verify:
		err = c.prepareKeyed(l, caller, &op)
	case hsm.SealSegment:
		if len(c.segment.Header) == 0 {
			op.Key, op.Algorithm, err = c.sealing(l, caller, policy.Encrypt, c.Key, c.Context)
		} else { // what the stream began with, whatever the newest version is by now
			op.Key, err = c.opening(l, caller, policy.Encrypt)
		}
	case hsm.OpenSegment:
		op.Key, err = c.decrypting(l, caller, now)
	default:
		err = fault.New(fault.BadRequest, "unknown operation")
	}
	return op, err
}

// sealing returns the newest version of the key that shall seal, if it is active and the
// context is what the key asks for.
func (c *Call) sealing(l *loaded, caller *auth.Caller, grant policy.Op, ref string, bound envelope.Context) (hsm.WrappedKey, alg.ID, error) {
	k, err := l.granted(caller, grant, ref)
	if err != nil {
		return "", 0, err
	}
	if !k.seals() {
		return "", 0, k.cannotSeal()
	}
	v := k.Newest()
	if k.Settings != nil {
		if err := k.Settings.Context.Check(bound); err != nil {
			return "", 0, err
		}
	}
	c.KeyAlgorithm = k.Algorithm
	if c.Algorithm != "" {
		if c.KeyAlgorithm, err = alg.ByName(c.Algorithm); err != nil {
			return "", 0, err
		}
	}
	c.KeyIndex, c.KeyVersion = k.Index, v.Version
	c.sealedBy, c.sealedVer = k, v.Version
	wrapped, err := v.key()
	return wrapped, c.KeyAlgorithm, err
}

// opening returns the key version that the ciphertext names. A caller learns no
// more than that a ciphertext does not open, but for a key it has no grant for.
func (c *Call) opening(l *loaded, caller *auth.Caller, grant policy.Op) (hsm.WrappedKey, error) {
	var named *Key
	if c.Key != "" {
		var err error
		if named, err = l.granted(caller, grant, c.Key); err != nil {
			return "", err
		}
	}
	header, err := c.header()
	if err != nil {
		return "", fault.DecryptFailed
	}
	c.KeyIndex, c.KeyVersion = header.Index, header.Version
	c.FromIndex, c.FromVersion = header.Index, header.Version
	k := named
	if k == nil {
		k = l.keys.get(header.Index)
	}
	if named != nil && named.Index != header.Index {
		return "", fault.DecryptFailed
	}
	if !caller.Allows(grant, header.Index) || k != nil && !k.serves(caller.Name) {
		return "", forbidden(grant)
	}
	if k == nil {
		return "", fault.DecryptFailed
	}
	v := k.Version(header.Version)
	if v == nil || !k.opens(v) {
		if err := k.cannotOpen(header.Version, caller); err != nil {
			return "", err
		}
	}
	c.openedBy, c.openedVer = k, header.Version
	c.KeyAlgorithm = alg.ID(header.Suite)
	return v.key()
}

// decrypting is opening for a caller that gets the plaintext, within its budget.
func (c *Call) decrypting(l *loaded, caller *auth.Caller, now func() time.Time) (hsm.WrappedKey, error) {
	key, err := c.opening(l, caller, policy.Decrypt)
	if err != nil {
		return "", err
	}
	return key, c.spend(l, caller, c.openedBy.Version(c.openedVer), now())
}

// header is that of the ciphertext, or what it has in common with that of the
// segment's stream.
func (c *Call) header() (envelope.Header, error) {
	if c.Kind == hsm.SealSegment || c.Kind == hsm.OpenSegment {
		h, _, err := envelope.ParseStream(c.segment.Header)
		return envelope.Header{Suite: h.Suite, Index: h.Index, Version: h.Version}, err
	}
	h, _, err := envelope.Parse(c.Input)
	return h, err
}

// granted returns the key of a reference if the app may use it. A key that the
// app has no grant for is forbidden whether it exists or not.
func (l *loaded) granted(caller *auth.Caller, grant policy.Op, ref string) (*Key, error) {
	k := l.keys.find(ref)
	index, isIndex := parseIndex(ref)
	switch {
	case k != nil && caller.Allows(grant, k.Index) && k.serves(caller.Name):
		return k, nil
	case k != nil:
		return nil, forbidden(grant)
	case isIndex && caller.Allows(grant, index), !isIndex && caller.AllowsAll(grant):
		return nil, fault.New(fault.KeyNotFound, "there is no key %q", ref)
	}
	return nil, forbidden(grant)
}

func forbidden(grant policy.Op) error {
	return fault.New(fault.Forbidden, "the app has no grant %s for this key", grant)
}

// finish takes over what the machine did, and counts it.
func (c *Call) finish(l *loaded, op *hsm.Op, now int64) {
	c.Output, c.Plain, c.Err = op.Output, op.Plain, op.Err
	if c.Err != nil {
		return
	}
	if c.JWS != nil {
		c.Output = c.JWS.finish(c.Kind, op)
	}
	if c.openedBy != nil {
		u := l.keys.useOf(c.openedBy, c.openedVer)
		u.opens.mine.Add(1)
		u.seen(now)
	}
	if c.sealedBy != nil {
		u := l.keys.useOf(c.sealedBy, c.sealedVer)
		u.seals.mine.Add(1)
		u.seen(now)
		if s := c.sealedBy.Settings; s != nil && s.RotateAfter != 0 && u.seals.total() >= s.RotateAfter {
			l.askRotation(c.sealedBy.Index, u)
		}
	}
}

// Visible returns a key if the app has any grant for it.
func (s *Service) Visible(caller *auth.Caller, ref string) (*Key, error) {
	l, err := s.serving()
	if err != nil {
		return nil, err
	}
	k := l.keys.find(ref)
	index, isIndex := parseIndex(ref)
	switch {
	case k != nil && caller.Sees(k.Index) && k.serves(caller.Name):
		return k, nil
	case k == nil && (isIndex && caller.Sees(index) || !isIndex && caller.SeesAll()):
		return nil, fault.New(fault.KeyNotFound, "there is no key %q", ref)
	}
	return nil, fault.New(fault.Forbidden, "the app has no grant for this key")
}
