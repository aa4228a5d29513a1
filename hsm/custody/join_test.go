package custody_test

import (
	"crypto/ed25519"
	"errors"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
)

// joined is a request of a blank machine and what an open one has granted for it.
type joined struct {
	peer, fresh *site
	clock       time.Time // of the machine that joins
	grant       hsm.JoinGrant
}

func newJoined(t *testing.T) *joined {
	t.Helper()
	j := &joined{peer: newSite(t), fresh: newSite(t), clock: time.Now()}
	j.peer.cfg.Join, j.fresh.cfg.Join = true, true
	j.fresh.cfg.Now = func() time.Time { return j.clock }
	j.peer.restart()
	j.fresh.restart()
	j.peer.init()
	for _, c := range j.peer.cards {
		if _, err := j.peer.desk.Present(t.Context(), c, j.peer.pin); err != nil {
			t.Fatal(err)
		}
	}
	j.grant = j.granted()
	return j
}

// granted is a grant for a new request.
func (j *joined) granted() hsm.JoinGrant {
	t := j.peer.t
	t.Helper()
	r, err := j.fresh.desk.RequestJoin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var p hsm.JoinProgress
	for _, c := range j.peer.cards[:hsm.JoinApprovals] {
		if p, err = j.peer.desk.ApproveJoin(t.Context(), r, r.Fingerprint, c, j.peer.pin); err != nil {
			t.Fatal(err)
		}
	}
	if p.Grant == nil {
		t.Fatalf("%+v", p)
	}
	return *p.Grant
}

// A peer that can sign, but grants something else than the machine asked for or may take:
// each is refused by name, and the request stays good.
func TestJoinHostilePeer(t *testing.T) {
	j := newJoined(t)
	other := j.grant
	j.grant = j.granted()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*hsm.JoinGrant)
		want   error
	}{
		"another region":    {func(g *hsm.JoinGrant) { g.Record.Region = "asia" }, fault.WrongRegion},
		"no dealing":        {func(g *hsm.JoinGrant) { g.Record.Threshold = 1 }, fault.RecordDamaged},
		"another root":      {func(g *hsm.JoinGrant) { g.Record.KCV = "cmac-aes:000000" }, fault.RootMismatch},
		"expired":           {func(g *hsm.JoinGrant) { g.Expires = j.clock }, fault.JoinExpired},
		"another machine":   {func(g *hsm.JoinGrant) { g.Machine = hsm.Fingerprint(public) }, fault.FingerprintWrong},
		"a request before":  {func(g *hsm.JoinGrant) { *g = other }, fault.NoCeremony},
		"sealed for before": {func(g *hsm.JoinGrant) { g.Key, g.Nonce, g.Root = other.Key, other.Nonce, other.Root }, fault.ChipFault},
		"another nonce":     {func(g *hsm.JoinGrant) { g.Nonce = other.Nonce }, fault.DecryptFailed},
		"an altered root":   {func(g *hsm.JoinGrant) { g.Root = append([]byte{g.Root[0] ^ 1}, g.Root[1:]...) }, fault.DecryptFailed},
		"no nonce":          {func(g *hsm.JoinGrant) { g.Nonce = nil }, fault.DecryptFailed},
		"no root":           {func(g *hsm.JoinGrant) { g.Root = nil }, fault.DecryptFailed},
	} {
		g := j.grant
		test.change(&g)
		message, err := g.Message()
		if err != nil {
			t.Fatal(err)
		}
		g.Signature = hsm.Signature{
			PublicKey: public, Fingerprint: hsm.Fingerprint(public), Signature: ed25519.Sign(private, hsm.SignedBytes(hsm.JoinGrantContext, message)),
		}
		if _, err := j.fresh.desk.Join(t.Context(), g, g.Fingerprint); !errors.Is(err, test.want) {
			t.Errorf("%s: %v; want %v", name, err, test.want)
		}
		if s := j.fresh.state().State; s != hsm.Blank {
			t.Fatalf("%s: the machine is %s", name, s)
		}
	}
	if _, err := j.fresh.desk.Join(t.Context(), j.grant, j.grant.Fingerprint); err != nil || j.fresh.state().State != hsm.Open {
		t.Errorf("the true one: %v", err)
	}
}

// A grant is good until the request expires, and not after.
func TestJoinExpires(t *testing.T) {
	j := newJoined(t)
	j.clock = j.grant.Expires
	if _, err := j.fresh.desk.Join(t.Context(), j.grant, j.grant.Fingerprint); !errors.Is(err, fault.JoinExpired) {
		t.Errorf("when it expires: %v", err)
	}
	j.clock = j.grant.Expires.Add(-time.Second)
	if _, err := j.fresh.desk.Join(t.Context(), j.grant, j.grant.Fingerprint); err != nil {
		t.Errorf("a second before: %v", err)
	}
}

// Abort makes the request void.
func TestJoinAborted(t *testing.T) {
	j := newJoined(t)
	if err := j.fresh.desk.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := j.fresh.desk.Join(t.Context(), j.grant, j.grant.Fingerprint); !errors.Is(err, fault.NoCeremony) {
		t.Errorf("an aborted request: %v", err)
	}
}
