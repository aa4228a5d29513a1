package main_test

import (
	"crypto/ed25519"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm"
)

// TestJoinApproveRefused: what no custodian's approval is, each refused by name, and what
// was approved before stays so.
func TestJoinApproveRefused(t *testing.T) {
	t.Parallel()
	j := newJoinSite(t)
	stranger := newSite(t)
	p := j.peer
	p.newCard("copy")
	p.store("copy", p.object("1"))
	p.newCard("stranger")
	p.store("stranger", stranger.object("1"))
	p.newCard("empty")
	p.write(p.path("pins", "wrong"), []byte("nonsense"))
	p.write(p.path("pins", "wrong.card"), []byte(p.serial("2")))
	request, out := j.request(), j.file()
	if r := j.approve(request, "1", out); r.code != 0 {
		t.Fatal(r)
	}
	for _, test := range []struct {
		card, want string
		code       int
	}{
		{"1", "has approved this already", 1},
		{"copy", "a copy of the one", 1},
		{"stranger", "belongs to machine", 6},
		{"empty", "holds no Trikey share", 6},
		{"wrong", "CKR_PIN_INCORRECT", 4},
	} {
		if r := j.approve(request, test.card, out); r.code != test.code || !strings.Contains(r.err, test.want) {
			t.Errorf("card %s: %+v; want %q", test.card, r, test.want)
		}
	}
	print := j.fresh.fingerprint()
	for _, confirm := range []string{strings.Repeat("0", 16), print[:15], p.fingerprint()} { // another's, too short, the peer's
		p.wants(6, "is not the beginning", "machine", "join-approve", "--in", request, "--out", out, "--confirm", confirm, "--pin-file", p.path("pins", "2"))
	}
	p.wants(2, "no terminal", "machine", "join-approve", "--in", request, "--out", out, "--pin-file", p.path("pins", "2"))
	// Another request is not finished with approvals of this one.
	second := j.request()
	if r := j.approve(second, "2", out); r.code != 1 || !strings.Contains(r.err, "is being approved") {
		t.Errorf("another request: %+v", r)
	}
	altered := j.file()
	j.alter(request, altered, func(o object) { o["region"] = "elsewhere" })
	if r := j.approve(altered, "2", out); r.code != 6 || !strings.Contains(r.err, "altered") {
		t.Errorf("an altered request: %+v", r)
	}
	if _, err := os.Stat(out); err == nil {
		t.Fatal("a grant was written")
	}
	if r := j.approve(request, "2", out); r.code != 0 || !strings.Contains(r.out, `"granted": true`) {
		t.Errorf("the second custodian: %+v", r)
	}
	if r := j.approve(request, "2", out); r.code != 2 || !strings.Contains(r.err, "exists already") {
		t.Errorf("over a file: %+v", r)
	}
	// It is for the request before the last.
	j.refusesGrant("waits for no grant", 1, out)
	// A seal forgets the approvals, and a sealed machine gives none.
	request, out = j.request(), j.file()
	if r := j.approve(request, "1", out); r.code != 0 {
		t.Fatal(r)
	}
	p.ok("machine", "seal")
	if r := j.approve(request, "2", out); r.code != 3 || !strings.Contains(r.err, "only an open one") {
		t.Errorf("at a sealed machine: %+v", r)
	}
	p.unsealAny(p.allCards())
	if r := j.approve(request, "2", out); r.code != 0 || !strings.Contains(r.out, `"have": 1`) {
		t.Errorf("after a seal: %+v", r)
	}
	if audit := p.auditLog(); strings.Count(audit, `"granted":"true"`) != 1 {
		t.Error("the log does not have one grant")
	}
}

// alter copies a file with a change.
func (j *joinSite) alter(from, to string, change func(object)) {
	j.peer.t.Helper()
	var o object
	j.decode(from, &o)
	change(o)
	raw, err := json.Marshal(o)
	if err != nil {
		j.peer.t.Fatal(err)
	}
	j.peer.write(to, raw)
}

// TestJoinElsewhere: other regions, other machines, other times, and machines that do not
// take part.
func TestJoinElsewhere(t *testing.T) {
	t.Parallel()
	j := newJoinSite(t)
	request := j.request()
	grant := j.grant(request)

	// Another machine, blank too, and another peer.
	other := &joinSite{peer: j.peer, fresh: newJoinMachine(t), files: 100}
	other.fresh.start()
	if r := other.fresh.run("machine", "join", "--in", grant, "--peer", j.peer.fingerprint()); r.code == 0 || !strings.Contains(r.err, "the grant is for the machine") {
		t.Errorf("at another machine: %+v", r)
	}
	// It has a root of its own, and keeps it.
	other.refusesGrant("root key of its own", 1, other.grant(other.request()))
	j.fresh.wants(6, "is signed by the machine", "machine", "join", "--in", grant, "--peer", other.fresh.fingerprint())
	j.fresh.wants(2, "64", "machine", "join", "--in", grant, "--peer", j.peer.fingerprint()[:16])

	// Altered in every part.
	var fields object
	j.decode(grant, &fields)
	if len(fields) < 10 {
		t.Fatalf("%d fields", len(fields))
	}
	for name := range fields {
		altered := j.file()
		j.alter(grant, altered, func(o object) { o[name] = changed(o[name]) })
		if r := j.join(altered); r.code == 0 {
			t.Errorf("%s altered: %+v", name, r)
		}
	}
	// Signed anew by somebody else.
	forged := j.file()
	j.forge(t, grant, forged)
	j.refusesGrant("is signed by the machine", 6, forged)
	if j.fresh.state() != "blank 0/0" {
		t.Fatalf("the new machine is %s", j.fresh.state())
	}

	// Too late, and too early: the peer's clock is elsewhere.
	for clock, want := range map[string]string{"2h": "was good until", "-2h": "compare the clocks"} {
		j.peer.kill()
		j.peer.startBinary(trikeyFailpoint, "TRIKEY_FAILPOINT_CLOCK="+clock)
		j.peer.unsealAny(j.peer.allCards())
		if r := j.approve(request, "1", j.file()); r.code == 0 || !strings.Contains(r.err, want) {
			t.Errorf("a clock %s ahead: %+v", clock, r)
		}
	}
	// What was granted before is still good, also while the peer is away.
	peer := j.peer.fingerprint()
	j.peer.kill()
	j.fresh.ok("machine", "join", "--in", grant, "--peer", peer)

	// Another region.
	j.peer.open()
	far := &joinSite{peer: j.peer, fresh: newJoinMachine(t), files: 200}
	far.fresh.forgetRecord()
	far.fresh.configure(func(cfg *config.Config) { cfg.Region = "far" })
	far.fresh.start()
	if r := far.approve(far.request(), "1", far.file()); r.code != 4 || !strings.Contains(r.err, "never leaves its region") {
		t.Errorf("another region: %+v", r)
	}
	// One that is open needs nothing, and one whose configuration says nothing takes no part.
	j.peer.wants(1, "open already", "machine", "join-request", "--out", j.file())
	j.peer.kill()
	j.peer.configure(func(cfg *config.Config) { cfg.Machine.Join = config.Default().Machine.Join })
	j.peer.open()
	if r := other.approve(other.request(), "1", other.file()); r.code != 2 || !strings.Contains(r.err, "machine.join is off") {
		t.Errorf("off at the peer: %+v", r)
	}
	j.peer.ok("machine", "seal")
	j.peer.wants(2, "machine.join is off", "machine", "join-request", "--out", j.file())
	j.peer.wants(2, "machine.join is off", "machine", "join", "--in", grant, "--peer", peer)
}

// changed is another value of the same kind.
func changed(v any) any {
	switch v := v.(type) {
	case string:
		if strings.HasPrefix(v, "20") && strings.Contains(v, ":") { // a time
			return "2999" + v[4:]
		}
		if v[0] == 'a' {
			return "b" + v[1:]
		}
		return "a" + v[1:]
	case []any:
		return v[:1]
	case object:
		out := object{}
		for name, value := range v {
			out[name] = value
		}
		out["kcv"] = "cmac-aes:000000"
		return out
	}
	return nil
}

// forge signs a grant with a key of the test's own.
func (j *joinSite) forge(t *testing.T, from, to string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	var g hsm.JoinGrant
	j.decode(from, &g)
	message, err := g.Message()
	if err != nil {
		t.Fatal(err)
	}
	g.Signature = hsm.Signature{
		PublicKey: public, Fingerprint: hsm.Fingerprint(public), Signature: ed25519.Sign(private, hsm.SignedBytes(hsm.JoinGrantContext, message)),
	}
	if err := g.Check(g.Fingerprint); err != nil {
		t.Fatalf("the forged grant is not even well signed: %v", err)
	}
	raw, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	j.peer.write(to, raw)
}
