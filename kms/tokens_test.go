package kms_test

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/policy"
	"github.com/trikey/trikey/kms/token"
)

const issuer = "https://keys.example.com"

// issuing is a service that issues tokens, and its clock.
type issuing struct {
	*kms.Service
	t     *testing.T
	base  time.Time
	later atomic.Int64 // a time.Duration
}

func (i *issuing) advance(by time.Duration) { i.later.Store(int64(by)) }

func (s *site) issuing() *issuing {
	s.t.Helper()
	i := &issuing{t: s.t, base: time.Now()}
	i.Service = kms.New(kms.Config{Machine: s.machine, Store: s.store, Now: func() time.Time { return i.base.Add(time.Duration(i.later.Load())) }, Tokens: token.Config{Issuer: issuer}})
	s.t.Cleanup(func() { _ = i.Close() })
	if err := i.Load(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return i
}

func (i *issuing) tokens() *token.Authority {
	i.t.Helper()
	a, err := i.Tokens()
	if err != nil {
		i.t.Fatal(err)
	}
	return a
}

func (i *issuing) mint(r token.Request) token.Minted {
	i.t.Helper()
	m, err := i.tokens().Mint(i.t.Context(), r)
	if err != nil {
		i.t.Fatal(err)
	}
	return m
}

// refused checks that a token is not taken, for that reason.
func (i *issuing) refused(what, compact, why string) {
	i.t.Helper()
	if _, err := i.tokens().Verify(compact); !errors.Is(err, fault.Unauthorized) || !strings.Contains(err.Error(), why) {
		i.t.Errorf("%s: %v", what, err)
	}
}

func (i *issuing) taken(what, compact string) *token.Token {
	i.t.Helper()
	t, err := i.tokens().Verify(compact)
	if err != nil {
		i.t.Fatalf("%s: %v", what, err)
	}
	return t
}

var capability = token.Request{
	Class: token.User, Subject: "alice", ClientID: "akx", Operations: []policy.Op{policy.Encrypt, policy.Decrypt}, Conversations: []string{"c1", "c2"},
}

// A token is good from when it was issued until it expires, and for its class alone.
func TestTokenTime(t *testing.T) {
	i := newSite(t).issuing()
	for _, r := range []token.Request{
		{Class: token.App, ClientID: "akx"}, capability, {Class: token.Admin, Subject: "ann"}, {Class: token.Auditor, Subject: "bob"},
	} {
		m := i.mint(r)
		for _, class := range []token.Class{token.App, token.User, token.Admin, token.Auditor} {
			if err := i.taken("new", m.Token).Require(class); (err == nil) != (class == r.Class) || err != nil && !errors.Is(err, fault.Forbidden) {
				t.Errorf("%s where %s belongs: %v", r.Class, class, err)
			}
		}
		i.advance(59 * time.Minute)
		i.taken("nearly expired", m.Token)
		i.advance(time.Hour)
		i.refused("expired", m.Token, "expired")
		i.advance(-time.Minute)
		i.refused("of the future", m.Token, "future")
		i.advance(0)
	}
	for _, r := range []token.Request{
		{Class: token.App, TTL: time.Hour + time.Second},
		{Class: token.Admin, Subject: "a", TTL: 2*time.Hour + time.Second},
		{Class: token.App, TTL: time.Second},
		{Class: token.Admin},
		{Class: "root", Subject: "x"},
		{Class: token.User, Subject: "a", ClientID: "akx", Conversations: []string{"c"}, Operations: capability.Operations, TTL: 24*time.Hour + time.Second},
		{Class: token.User, Subject: "a", ClientID: "akx", Conversations: []string{"c"}},
		{Class: token.User, Subject: "a", ClientID: "akx", Conversations: []string{""}, Operations: capability.Operations},
		{Class: token.User, Subject: "a", ClientID: "akx", Operations: capability.Operations},
		{Class: token.User, Subject: "a", ClientID: "akx", Conversations: []string{"c"}, Operations: []policy.Op{policy.Sign}},
	} {
		if _, err := i.tokens().Mint(t.Context(), r); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// What a key of the machine signs for an app is no token, whatever it says, and the key of
// tokens signs for nobody.
func TestTokenKeyIsNobodys(t *testing.T) {
	i := newSite(t).issuing()
	minted := i.mint(token.Request{Class: token.App, ClientID: "akx"})
	payload := jwtPayload(t, minted.Token)
	k, err := i.CreateKey(t.Context(), "test", kms.NewKey{Index: 5, Purpose: hsm.PurposeSign, Published: true})
	if err != nil {
		t.Fatal(err)
	}
	all := &auth.Caller{App: &auth.App{Name: "im", Grants: grants(t, "keys=*;ops=sign,verify")}}
	forged := does(t, i.Service, all, kms.Call{Kind: hsm.Sign, Key: "5", Input: payload, JWS: &kms.JWS{Type: token.Type}})[0]
	if forged.Err != nil {
		t.Fatal(forged.Err)
	}
	i.refused("of a key of another use", string(forged.Output), "no key that signs tokens")
	if err := does(t, i.Service, all, kms.Call{Kind: hsm.Sign, Key: token.KeyName, Input: payload, JWS: &kms.JWS{Type: token.Type}})[0].Err; !errors.Is(err, fault.Forbidden) {
		t.Errorf("the key of tokens signs for an app: %v", err)
	}
	// A key of the right name that the service did not make signs no token.
	other := newSite(t).issuing()
	if _, err := other.CreateKey(t.Context(), "test", kms.NewKey{Index: k.Index, Name: token.KeyName, Purpose: hsm.PurposeSign}); err != nil {
		t.Fatal(err)
	}
	if _, err := other.tokens().Mint(t.Context(), token.Request{Class: token.App, ClientID: "akx"}); !errors.Is(err, fault.Conflict) {
		t.Errorf("%v", err)
	}
}

func jwtPayload(t *testing.T, compact string) []byte {
	t.Helper()
	signed, err := jose.ParseSignedCompact(compact, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		t.Fatal(err)
	}
	return signed.UnsafePayloadWithoutVerification()
}

// After a rotation tokens of before are good until they expire; what is no longer
// believed of a key is no longer believed of its tokens.
func TestTokenRotation(t *testing.T) {
	i := newSite(t).issuing()
	before := i.mint(token.Request{Class: token.App, ClientID: "akx"})
	k, err := i.FindKey(token.KeyName)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.RotateKey(t.Context(), "test", k.Index); err != nil {
		t.Fatal(err)
	}
	after := i.mint(token.Request{Class: token.App, ClientID: "akx"})
	kid := func(compact string) string {
		parsed, err := jwt.ParseSigned(compact, []jose.SignatureAlgorithm{jose.EdDSA})
		if err != nil {
			t.Fatal(err)
		}
		return parsed.Headers[0].KeyID
	}
	if a, b := kid(before.Token), kid(after.Token); a != kms.KeyID(k.Index, 1) || b != kms.KeyID(k.Index, 2) {
		t.Errorf("%s and %s", a, b)
	}
	i.taken("of the version before", before.Token)
	i.taken("of the newest", after.Token)
	if published, err := i.Published(); err != nil || len(published) != 2 {
		t.Errorf("%v, %v", published, err)
	}
	if _, err := i.CompromiseKey(t.Context(), "test", k.Index, 1); err != nil {
		t.Fatal(err)
	}
	i.refused("of a compromised version", before.Token, "no key that signs tokens")
	i.taken("of the newest", after.Token)
	if _, err := i.SuspendKey(t.Context(), "test", k.Index); err != nil {
		t.Fatal(err)
	}
	i.refused("of a suspended key", after.Token, "no key that signs tokens")
}

// A revocation holds at once, on every node, after a new start, and until its tokens have
// expired; then it is forgotten.
func TestTokenRevocation(t *testing.T) {
	s := newSite(t)
	a, b := s.issuing(), s.issuing()
	app := token.Request{Class: token.App, ClientID: "akx"}
	one, two, user, person := a.mint(app), a.mint(app), a.mint(capability), a.mint(token.Request{Class: token.Admin, Subject: "ann"})
	bob := capability
	bob.Subject = "bob"
	other := a.mint(bob)
	eventually(t, "the other node has the key", func() bool { _, err := b.tokens().Verify(one.Token); return err == nil })
	revoked := func(what string, m token.Minted, is bool) {
		t.Helper()
		if is {
			a.refused(what, m.Token, "revoked")
			eventually(t, what, func() bool { _, err := b.tokens().Verify(m.Token); return errors.Is(err, fault.Unauthorized) })
			return
		}
		a.taken(what, m.Token)
		b.taken(what, m.Token)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(a.tokens().Revoke(t.Context(), "test", &one.Claims))
	must(a.tokens().Revoke(t.Context(), "test", &one.Claims))
	revoked("one token", one, true)
	revoked("another of the app", two, false)
	must(a.tokens().RevokeUser(t.Context(), "test", "akx", "alice"))
	revoked("the user's", user, true)
	revoked("another user's", other, false)
	a.taken("a new one of the user", a.mint(capability).Token)
	must(a.tokens().RevokeApp(t.Context(), "test", "akx"))
	revoked("the app's", two, true)
	revoked("its users'", other, true)
	revoked("a person's", person, false)
	b.taken("a new one of the app", b.mint(app).Token)
	must(a.tokens().RevokePerson(t.Context(), "test", "ann"))
	revoked("the person's", person, true)
	// The same after a new start.
	c := s.issuing()
	for _, m := range []token.Minted{one, two, user, other, person} {
		c.refused("after a new start", m.Token, "revoked")
	}
	c.advance(25 * time.Hour)
	if done, err := c.Tend(t.Context()); err != nil || done.Forgotten != 4 {
		t.Errorf("%+v, %v", done, err)
	}
	if stale := c.tokens().Stale(); len(stale) != 0 {
		t.Errorf("left: %v", stale)
	}
	eventually(t, "the others forget too", func() bool { a.advance(25 * time.Hour); return len(a.tokens().Stale()) == 0 })
}

// A revocation that somebody takes out of the store holds on at every node that runs, and
// one that starts says whose record is missing. A root that is rotated changes nothing.
func TestTokenRevocationKept(t *testing.T) {
	s := newSite(t)
	a, b := s.issuing(), s.issuing()
	app := token.Request{Class: token.App, ClientID: "akx"}
	one, two, three, four := a.mint(app), a.mint(app), a.mint(app), a.mint(app)
	revoke := func(m token.Minted) {
		t.Helper()
		if err := a.tokens().Revoke(t.Context(), "test", &m.Claims); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the other node knows", func() bool {
			_, err := b.tokens().Verify(m.Token)
			return err != nil && strings.Contains(err.Error(), "revoked")
		})
	}
	revoke(one)
	s.rotateRoot(a.Service)
	revoke(three) // the other node has followed when it knows of this
	for _, node := range []*issuing{a, b} {
		node.refused("revoked before the rotation", one.Token, "revoked")
		node.taken("of before the rotation", two.Token)
		node.taken("of after it", a.mint(app).Token)
	}
	if _, err := s.store.Txn(t.Context(), nil, []keystore.Write{{Name: "g2/tokens/revoked/" + one.ID, Delete: true}}); err != nil {
		t.Fatal(err)
	}
	revoke(four) // both are past the deletion when they have this
	a.refused("taken out", one.Token, "revoked")
	b.refused("taken out", one.Token, "revoked")
	c := kms.New(kms.Config{Machine: s.machine, Store: s.store})
	t.Cleanup(func() { _ = c.Close() })
	if err := c.Load(t.Context()); !errors.Is(err, fault.RecordDamaged) || !strings.Contains(err.Error(), one.ID) {
		t.Errorf("a new start: %v", err)
	}
}

// A user's token narrows its app's grants, each call and item by itself.
func TestCapability(t *testing.T) {
	s := newSite(t)
	i := s.issuing()
	s.create(i.Service, 1, "one")
	s.create(i.Service, 2, "two")
	c := s.app(i.Service, "im")
	apps, err := i.Apps()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := apps.Change(t.Context(), "im", func(a *auth.App) error {
		a.Grants = grants(t, "keys=*;ops=encrypt,decrypt,reencrypt,datakey,mac,sign,verify")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	narrowed := func(r token.Request) *auth.Caller {
		t.Helper()
		r.ClientID = c.AppKey
		caller, err := apps.Admit(i.taken("capability", i.mint(r).Token), netip.MustParseAddr("127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		return caller
	}
	ops := []policy.Op{policy.Encrypt, policy.Decrypt, policy.ReencryptFrom, policy.ReencryptTo, policy.DataKey}
	whole := capability
	whole.Operations = ops
	user := narrowed(whole)
	c1, c3 := envelope.Context{"conversation": "c1"}, envelope.Context{"conversation": "c3"}
	app := &auth.Caller{App: user.App}
	elsewhere := does(t, i.Service, app, kms.Call{Kind: hsm.Encrypt, Key: "1", Context: c3})[0].Output
	here := does(t, i.Service, app, kms.Call{Kind: hsm.Encrypt, Key: "1", Context: c1})[0].Output
	readOnly := capability
	readOnly.Operations = ops[1:2]
	oneKey := whole
	oneKey.Keys = policy.Ranges{{From: 2, To: 2}}
	for n, test := range []struct {
		caller *auth.Caller
		call   kms.Call
		want   error
	}{
		{user, kms.Call{Kind: hsm.Encrypt, Key: "1", Context: c1}, nil},
		{user, kms.Call{Kind: hsm.Encrypt, Key: "1", Context: c3}, fault.Forbidden},
		{user, kms.Call{Kind: hsm.Encrypt, Key: "1"}, fault.Forbidden},
		{user, kms.Call{Kind: hsm.Decrypt, Key: "1", Input: here, Context: c1}, nil},
		{user, kms.Call{Kind: hsm.Decrypt, Key: "1", Input: elsewhere, Context: c3}, fault.Forbidden},
		{user, kms.Call{Kind: hsm.Decrypt, Key: "1", Input: elsewhere, Context: c1}, fault.DecryptFailed},
		{user, kms.Call{Kind: hsm.Reencrypt, Input: here, Context: c1, ToContext: envelope.Context{"conversation": "c2"}}, nil},
		{user, kms.Call{Kind: hsm.Reencrypt, Input: here, Context: c1, ToContext: c3}, fault.Forbidden},
		{user, kms.Call{Kind: hsm.Reencrypt, Input: elsewhere, Context: c3, ToContext: c1}, fault.Forbidden},
		{user, kms.Call{Kind: hsm.DataKey, Key: "1", Size: 32, Context: c1}, nil},
		{user, kms.Call{Kind: hsm.DataKey, Key: "1", Size: 32, Context: c3}, fault.Forbidden},
		{user, kms.Call{Kind: hsm.Random, Size: 32}, fault.Forbidden},
		{user, kms.Call{Kind: hsm.Mac, Key: "1", Context: c1}, fault.Forbidden},
		{narrowed(readOnly), kms.Call{Kind: hsm.Encrypt, Key: "1", Context: c1}, fault.Forbidden},
		{narrowed(readOnly), kms.Call{Kind: hsm.Decrypt, Key: "1", Input: here, Context: c1}, nil},
		{narrowed(oneKey), kms.Call{Kind: hsm.Encrypt, Key: "1", Context: c1}, fault.Forbidden},
		{narrowed(oneKey), kms.Call{Kind: hsm.Encrypt, Key: "2", Context: c1}, nil},
	} {
		if got := does(t, i.Service, test.caller, test.call)[0].Err; !errors.Is(got, test.want) {
			t.Errorf("case %d: %v, want %v", n, got, test.want)
		}
	}
	// Of a batch the items that are the user's are done.
	mixed := does(t, i.Service, user, kms.Call{Kind: hsm.Encrypt, Key: "1", Context: c1}, kms.Call{Kind: hsm.Encrypt, Key: "1", Context: c3})
	if mixed[0].Err != nil || !errors.Is(mixed[1].Err, fault.Forbidden) {
		t.Errorf("%v, %v", mixed[0].Err, mixed[1].Err)
	}
	// A stream ends with its token.
	stream, err := i.SealStream(user, "1", "", c1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Do(t.Context(), nil, envelope.Segment{Bytes: make([]byte, envelope.SegmentSize)}); err != nil {
		t.Fatal(err)
	}
	if err := i.tokens().RevokeUser(t.Context(), "test", c.AppKey, "alice"); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Do(t.Context(), nil, envelope.Segment{Counter: 1, Last: true}); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("a stream goes on: %v", err)
	}
	// The app as it is now counts.
	fresh := i.taken("a new one", i.mint(token.Request{Class: token.App, ClientID: c.AppKey}).Token)
	if _, err := apps.Admit(fresh, netip.MustParseAddr("127.0.0.2")); !errors.Is(err, fault.IPNotAllowed) {
		t.Errorf("from elsewhere: %v", err)
	}
	if _, err := apps.Change(t.Context(), "im", func(a *auth.App) error { a.Disabled = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := apps.Admit(fresh, netip.MustParseAddr("127.0.0.1")); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("of a disabled app: %v", err)
	}
}
