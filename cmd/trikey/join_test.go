package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm"
)

// joinSite is an open machine, and a blank one that is to get its root.
type joinSite struct {
	peer, fresh *site
	files       int
}

// newJoinMachine makes a machine that runs apart, and gives and takes roots.
func newJoinMachine(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.verb = []string{"machine", "serve"}
	s.configure(func(cfg *config.Config) {
		cfg.Machine.Socket, cfg.Machine.Join = s.path("data", "services.sock"), config.JoinApprove
	})
	return s
}

func newJoinSite(t *testing.T) *joinSite {
	t.Helper()
	j := &joinSite{peer: newJoinMachine(t), fresh: newJoinMachine(t)}
	j.fresh.forgetRecord()
	j.peer.open()
	j.fresh.start()
	return j
}

func (s *site) forgetRecord() {
	s.t.Helper()
	if err := os.Remove(s.path("data", "machine.json")); err != nil {
		s.t.Fatal(err)
	}
}

// file names a new file.
func (j *joinSite) file() string {
	j.files++
	return j.peer.path(fmt.Sprintf("join-%d.json", j.files))
}

func (j *joinSite) request() string {
	j.fresh.t.Helper()
	file := j.file()
	j.fresh.ok("machine", "join-request", "--out", file)
	return file
}

// approve gives one custodian's approval at the peer.
func (j *joinSite) approve(request, card, grant string) result {
	j.peer.t.Helper()
	return j.peer.run("machine", "join-approve", "--in", request, "--out", grant, "--confirm", j.fresh.fingerprint()[:hsm.JoinConfirm],
		"--pin-file", j.peer.path("pins", card), "-o", "json")
}

// grant has a request approved by two custodians.
func (j *joinSite) grant(request string) string {
	j.peer.t.Helper()
	file := j.file()
	for _, card := range []string{"3", "1"} {
		if r := j.approve(request, card, file); r.code != 0 {
			j.peer.t.Fatalf("approve with card %s: %+v", card, r)
		}
	}
	return file
}

func (j *joinSite) join(grant string) result {
	j.fresh.t.Helper()
	return j.fresh.run("machine", "join", "--in", grant, "--peer", j.peer.fingerprint(), "-o", "json")
}

// TestJoin: a blank machine of two that a service uses gets the root by two custodians'
// approval, and serves; both logs tell of it; and what was granted opens nothing again.
func TestJoin(t *testing.T) {
	t.Parallel()
	a := newApart(t, 2)
	for _, m := range a.machines {
		m.configure(func(cfg *config.Config) { cfg.Machine.Join = config.JoinApprove })
	}
	j := &joinSite{peer: a.machines[0], fresh: a.machines[1]}
	j.fresh.forgetRecord()
	a.openMachine(0)
	j.fresh.start()
	a.start()
	within(t, "the service is ready", func() bool { _, ready := a.ready(); return ready == 200 })
	a.ok("key", "create", "--index", "7", "--name", "chat")
	a.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)

	request, grant := j.request(), j.file()
	if r := j.approve(request, "2", grant); r.code != 0 || !strings.Contains(r.out, `"granted": false`) {
		t.Fatalf("the first approval: %+v", r)
	}
	if _, err := os.Stat(grant); err == nil {
		t.Fatal("one approval was enough")
	}
	if r := j.approve(request, "3", grant); r.code != 0 || !strings.Contains(r.out, `"granted": true`) {
		t.Fatalf("the second approval: %+v", r)
	}
	j.holdsNoRoot(grant)
	if r := j.join(grant); r.code != 0 {
		t.Fatalf("join: %+v\n%s", r, j.fresh.log)
	}
	if j.fresh.state() != "open 3/3" || j.fresh.recordKCV() != j.peer.recordKCV() {
		t.Errorf("the new machine is %s, check value %s", j.fresh.state(), j.fresh.recordKCV())
	}
	within(t, "both machines serve", func() bool { return a.up() == 2 })
	sealed := a.encrypt("7", []byte("text"), nil)
	j.peer.kill()
	within(t, "the new one alone serves", func() bool { return a.up() == 1 })
	a.opens(sealed, "dGV4dA==")
	a.openMachine(0)

	// Nothing that opens the root is on its disk, and the grant opens nothing any more.
	files, err := os.ReadDir(j.fresh.path("data"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), "warm") || strings.Contains(f.Name(), "join") {
			t.Errorf("%s is left on the disk", f.Name())
		}
	}
	j.refusesGrant("open already", 1, grant)
	j.fresh.ok("machine", "seal")
	j.refusesGrant("used already", 4, grant)
	j.fresh.kill()
	j.fresh.start()
	if j.fresh.state() != "sealed 0/3" {
		t.Errorf("started again it is %s", j.fresh.state())
	}
	j.refusesGrant("waits for no grant", 1, grant)

	// A machine that was adopted and is sealed joins too; and the cards open it.
	if r := j.join(j.grant(j.request())); r.code != 0 || j.fresh.state() != "open 3/3" {
		t.Errorf("join of a sealed machine: %+v", r)
	}
	j.fresh.ok("machine", "seal")
	if r := j.fresh.unseal(j.peer.cards()...); r.code != 0 {
		t.Errorf("unseal by cards: %+v", r)
	}
	j.audited(request, grant)
}

// audited checks that both logs are whole and tell who gave what to whom.
func (j *joinSite) audited(request, grant string) {
	t := j.peer.t
	t.Helper()
	var r hsm.JoinRequest
	j.decode(request, &r)
	for _, m := range []*site{j.peer, j.fresh} {
		m.ok("audit", "verify")
	}
	at, from := j.peer.auditLog(), j.fresh.auditLog()
	for _, want := range []string{`"op":"approve-join"`, r.ID.String(), r.Fingerprint, `"granted":"true"`, j.peer.serial("2"), j.peer.serial("3")} {
		if !strings.Contains(at, want) {
			t.Errorf("the peer's log has no %s", want)
		}
	}
	for _, want := range []string{`"op":"request-join"`, `"op":"join"`, r.ID.String(), j.peer.fingerprint(), `"outcome":"replay"`} {
		if !strings.Contains(from, want) {
			t.Errorf("the new machine's log has no %s", want)
		}
	}
	var g hsm.JoinGrant
	j.decode(grant, &g)
	if len(g.Approved) != 2 || g.Approved[0].Serial != j.peer.serial("2") || g.Approved[1].Serial != j.peer.serial("3") {
		t.Errorf("approved by %+v", g.Approved)
	}
}

func (j *joinSite) decode(file string, into any) {
	j.peer.t.Helper()
	raw, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		j.peer.t.Fatal(err)
	}
}

// holdsNoRoot looks for the root in a grant.
func (j *joinSite) holdsNoRoot(grant string) {
	t := j.peer.t
	t.Helper()
	var g hsm.JoinGrant
	j.decode(grant, &g)
	root := needle(t, "root", j.peer.root("1", "2", "3").Key).Value
	for name, part := range map[string][]byte{"key": g.Key, "root": g.Root} {
		if len(part) == 0 || strings.Contains(string(part), string(root)) {
			t.Errorf("%s of the grant: %x", name, part)
		}
	}
}

func (j *joinSite) refusesGrant(want string, code int, grant string) {
	j.fresh.t.Helper()
	if r := j.join(grant); r.code != code || !strings.Contains(r.err, want) {
		j.fresh.t.Errorf("join: %+v; want exit code %d and %q", r, code, want)
	}
}

// TestJoinKilled: either machine dies at each step. Until the new one's record is on its
// disk it is blank, as it was; from then on the cards open it.
func TestJoinKilled(t *testing.T) {
	t.Parallel()
	j := newJoinSite(t)
	restart := func(s *site, point string) {
		s.kill()
		if point == "" {
			s.start()
		} else {
			s.startBinary(trikeyFailpoint, "TRIKEY_FAILPOINT="+point+"=kill")
		}
	}
	dies := func(s *site, point string, r result) {
		t.Helper()
		if r.code == 0 {
			t.Fatalf("%s: not reached: %+v", point, r)
		}
		<-s.exited
	}
	for _, point := range []string{"join-approved-1", "join-approved-2", "join-granted"} {
		restart(j.peer, point)
		j.peer.unsealAny(j.peer.allCards())
		request, out := j.request(), j.file()
		r := j.approve(request, "1", out)
		if point != "join-approved-1" {
			if r.code != 0 {
				t.Fatal(r)
			}
			r = j.approve(request, "2", out)
		}
		dies(j.peer, point, r)
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: there is a grant", point)
		}
		restart(j.peer, "")
		if s := j.peer.state(); s != "sealed 0/3" {
			t.Errorf("%s: the peer is %s", point, s)
		}
		j.peer.unsealAny(j.peer.allCards())
		// The approval of before does not count.
		if r := j.approve(request, "2", out); r.code != 0 || !strings.Contains(r.out, `"have": 1`) {
			t.Errorf("%s: %+v", point, r)
		}
		j.peer.ok("machine", "abort")
		j.peer.ok("audit", "verify")
	}
	for point, want := range map[string]string{"join-requested": "blank 0/0", "join-opened": "blank 0/0", "join-recorded": "sealed 0/3"} {
		j.fresh.kill()
		_ = os.Remove(j.fresh.path("data", "machine.json"))
		restart(j.fresh, point)
		if point == "join-requested" {
			dies(j.fresh, point, j.fresh.run("machine", "join-request", "--out", j.file()))
		} else {
			dies(j.fresh, point, j.join(j.grant(j.request())))
		}
		restart(j.fresh, "")
		if s := j.fresh.state(); s != want {
			t.Errorf("%s: the new machine is %s, not %s", point, s, want)
		}
		if left, err := filepath.Glob(j.fresh.path("data", "warm*")); err != nil || len(left) > 0 {
			t.Errorf("%s: %v, %v", point, left, err)
		}
		j.fresh.ok("audit", "verify")
		if r := j.join(j.grant(j.request())); r.code != 0 || j.fresh.state() != "open 3/3" {
			t.Errorf("%s: joining afterwards: %+v", point, r)
		}
	}
}

// TestJoinMemory: giving and taking the root leaves neither it, nor a share, a PIN or a
// derived key in the memory of either machine. In a build that protects nothing the same
// scan finds the root in the machine that took it.
func TestJoinMemory(t *testing.T) {
	t.Parallel()
	j := newJoinSite(t)
	needles := append(j.peer.secrets(), needle(t, "new chip PIN", j.fresh.pin("chip")))
	for range 2 {
		canary, all := withCanary(needles)
		j.peer.kill()
		j.fresh.kill()
		j.peer.open(canary)
		j.fresh.start(canary)
		for range 2 {
			if r := j.join(j.grant(j.request())); r.code != 0 {
				t.Fatal(r)
			}
			j.peer.clean(all)
			j.fresh.clean(all)
			j.fresh.ok("machine", "seal")
			j.fresh.clean(all)
		}
	}
	j.fresh.kill()
	j.fresh.startBinary(buildControl(t))
	if r := j.join(j.grant(j.request())); r.code != 0 {
		t.Fatal(r)
	}
	if report := j.fresh.scan(needles); !report.Found("root") {
		t.Errorf("the root was not found in %d bytes of a process that protects nothing", report.Scanned)
	}
}

// TestJoinTerminal: what a custodian sees and types.
func TestJoinTerminal(t *testing.T) {
	t.Parallel()
	j := newJoinSite(t)
	request, grant := j.request(), j.file()
	print := j.fresh.fingerprint()
	for i, card := range []string{"1", "2"} {
		x := j.peer.atTerminal("machine", "join-approve", "--in", request, "--out", grant)
		x.shows(print)
		x.answer("type its first 16 characters", print[:8]+" "+print[8:16])
		for _, in := range j.peer.allCards() { // asked in the order of labels
			if in == card {
				pin, err := os.ReadFile(j.peer.path("pins", in))
				if err != nil {
					t.Fatal(err)
				}
				x.answer("serial "+j.peer.serial(in), strings.TrimSpace(string(pin)))
				break
			}
			x.answer("serial "+j.peer.serial(in), "") // passed over
		}
		x.shows(fmt.Sprintf("Approved: %d of 2", i+1))
		x.ends(0)
	}
	j.fresh.ok("machine", "join", "--in", grant, "--peer", j.peer.fingerprint())
	x := j.peer.atTerminal("machine", "join-approve", "--in", request, "--out", j.file())
	x.answer("type its first 16 characters", print[:4])
	x.shows("is not the beginning")
	x.ends(6)
}

// TestJoinWarm: a machine that starts warm keeps what it was given, as its chip encrypts it;
// one that does not keeps nothing.
func TestJoinWarm(t *testing.T) {
	t.Parallel()
	j := newJoinSite(t)
	j.fresh.kill()
	j.fresh.start("TRIKEY_MACHINE_START=warm")
	if r := j.join(j.grant(j.request())); r.code != 0 {
		t.Fatal(r)
	}
	j.fresh.kill()
	j.fresh.start("TRIKEY_MACHINE_START=warm")
	if s := j.fresh.state(); s != "open 3/3" {
		t.Errorf("a warm start: %s", s)
	}
	j.fresh.kill()
	j.fresh.start()
	if s := j.fresh.state(); s != "sealed 0/3" {
		t.Errorf("a start with cards: %s", s)
	}
}
