package main_test

import (
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/cmd/trikey/config"
)

// dualRequest is a request for approval, as commands print it.
type dualRequest struct {
	ID, State, Digest, What, By, Decider, Outcome string
	Result                                        any
}

// ask runs a command that must wait for approval.
func (p *person) ask(args ...string) (a dualRequest) {
	p.t.Helper()
	r := p.do("", append(args, "-o", "json")...)
	if r.code != 4 || !strings.Contains(r.err, "trikey approve grant") {
		p.t.Fatalf("%s: trikey %s: %+v", p.name, strings.Join(args, " "), r)
	}
	r.code = 0
	r.json(p.t, &a)
	return a
}

func (p *person) show(id string) (a dualRequest) {
	p.t.Helper()
	p.must("", "approve", "show", id, "-o", "json").json(p.t, &a)
	return a
}

func (p *person) grant(a dualRequest) result {
	p.t.Helper()
	return p.do("", "approve", "grant", a.ID, "--digest", a.Digest, "-o", "json")
}

// TestApproval: what is dangerous waits for another person, happens exactly as it was asked
// for, once, and both names are in the audit log.
func TestApproval(t *testing.T) {
	t.Parallel()
	o := newOffice(t, nil)
	ann := o.first("ann", "admin")
	ann.must("", "key", "create", "--index", "7", "--name", "chat")
	ann.must("", "app", "create", "--name", "im", "--allow-ip", "10.0.0.0/8") // alone she decides
	oz := o.first("oz", "officer")
	aud := o.first("aud", "auditor")

	// From now on two could approve.
	a := ann.ask("app", "allow-ip", "im", "0.0.0.0/0")
	if !strings.Contains(a.What, "EVERY ADDRESS") || a.By != "admin:ann" || a.State != "waiting" {
		t.Errorf("asked: %+v", a)
	}
	im := func() string { return o.ok("app", "show", "im", "-o", "json").out }
	if strings.Contains(im(), "0.0.0.0/0") {
		t.Fatal("it was done without approval")
	}
	for who, want := range map[*person]string{ann: "somebody else must approve", aud: "not for the role"} {
		if r := who.grant(a); r.code != 4 || !strings.Contains(r.err, want) {
			t.Errorf("%s grants: %+v", who.name, r)
		}
	}
	other := a
	other.Digest = strings.Repeat("0", len(a.Digest))
	if r := oz.grant(other); r.code != 1 || !strings.Contains(r.err, "not what is asked for") {
		t.Errorf("another body: %+v", r)
	}
	if strings.Contains(im(), "0.0.0.0/0") {
		t.Fatal("it was done without approval")
	}
	if r := oz.grant(oz.show(a.ID)); r.code != 0 {
		t.Fatalf("grant: %+v", r)
	}
	if !strings.Contains(im(), "0.0.0.0/0") {
		t.Error("it was granted, and not done")
	}
	o.ok("app", "deny-ip", "im", "0.0.0.0/0")
	if r := oz.grant(a); r.code != 1 || !strings.Contains(r.err, "no longer waits: it is done") {
		t.Errorf("granted again: %+v", r)
	}
	if strings.Contains(im(), "0.0.0.0/0") {
		t.Error("it was done twice")
	}
	log := o.ok("audit", "tail", "-n", "100", "-o", "json").out
	for _, want := range []string{`"approved_by"`, `officer:oz`, `admin:ann`, a.ID, `waits_for_approval`} {
		if !strings.Contains(log, want) {
			t.Errorf("the audit log has no %s", want)
		}
	}

	// Refused, and what the service itself refuses after the grant.
	b := ann.ask("key", "schedule-destroy", "7", "--days", "7")
	oz.must("", "approve", "refuse", b.ID, "--why", "not now")
	if r := oz.grant(b); r.code != 1 || !strings.Contains(r.err, "it is refused") {
		t.Errorf("granted after a refusal: %+v", r)
	}
	c := ann.ask("key", "schedule-destroy", "7")
	ann.must("", "key", "hold", "7", "--why", "court")
	if r := oz.grant(c); r.code == 0 || !strings.Contains(r.err, "granted, and failed") {
		t.Errorf("a key on hold is destroyed: %+v", r)
	}
	if got := ann.show(c.ID); got.State != "failed" || got.Outcome != "conflict" && got.Outcome != "key_disabled" && got.Outcome != "forbidden" {
		t.Errorf("how it ended: %+v", got)
	}
	ann.ask("key", "release", "7")
	ann.ask("key", "update", "7", "--retain", "1d")
	ann.ask("app", "grant", "im", "keys=7;ops=decrypt")
	if r := ann.do("", "app", "create", "--name", "spy", "--allow-ip", "10.0.0.0/8"); r.code != 4 || !strings.Contains(r.err, "create the app without them") {
		t.Errorf("an app with addresses: %+v", r)
	}
	ann.must("", "app", "create", "--name", "spy")
	ann.must("", "app", "deny-ip", "im", "10.0.0.0/8") // what narrows needs nobody
	receiver := o.path("receiver.pem")
	writeRSA(t, receiver, 3072)
	if r := ann.do("", "key", "export", "7", "--to-key", receiver, "--out", o.path("out")); r.code != 4 || !strings.Contains(r.err, "was not made exportable") {
		t.Errorf("export: %+v", r)
	}

	// A new person: neither who asks nor who approves has the whole code.
	r := oz.do("", "admin", "create", "--role", "admin", "bob")
	own := regexpHalf.FindStringSubmatch(r.err)
	if r.code != 4 || own == nil {
		t.Fatalf("invite: %+v", r)
	}
	var list []dualRequest
	ann.must("", "approve", "list", "-o", "json").json(t, &list)
	invite := dualRequest{}
	for _, a := range list {
		if strings.Contains(a.What, `"bob"`) {
			invite = a
		}
	}
	granted := ann.grant(invite)
	granted.json(t, &invite)
	half, _ := invite.Result.(map[string]any)["half"].(string)
	if half == "" || strings.Contains(granted.out, own[1]) {
		t.Fatalf("granted: %+v", granted)
	}
	bob := o.enrol("bob", "admin", half, own[1])
	d := ann.ask("app", "allow-ip", "im", "10.1.0.0/16")
	oz.must("", "admin", "disable", "ann") // two are left who can approve
	if r := bob.grant(d); r.code != 4 || !strings.Contains(r.err, "may no longer") {
		t.Errorf("the request of somebody who is disabled: %+v", r)
	}
	if r := ann.do("", "key", "list"); r.code != 4 {
		t.Errorf("a session of somebody who is disabled: %+v", r)
	}
	oz.ask("admin", "disable", "bob")
	if r := o.run("admin", "reset", "bob"); r.code != 0 { // one other is left: the host may
		t.Errorf("reset over the socket: %+v", r)
	}
}

// TestApprovalEnds: a request ends by itself, also when it was never looked at; always is
// for the socket too; none shuts the socket.
func TestApprovalEnds(t *testing.T) {
	t.Parallel()
	o := newOffice(t, func(c *config.Config) { c.Admin.RequestLife, c.Admin.Approval = 3*time.Second, "always" })
	ann := o.first("ann", "admin")
	oz := o.first("oz", "officer")
	o.ok("key", "create", "--index", "7", "--name", "chat")
	r := o.run("key", "schedule-destroy", "7", "-o", "json")
	if r.code != 4 || !strings.Contains(r.out, `"uid:`) {
		t.Fatalf("over the socket: %+v", r)
	}
	a := ann.ask("key", "schedule-destroy", "7")
	deadline := time.Now().Add(time.Minute)
	for ann.show(a.ID).State == "waiting" {
		if time.Now().After(deadline) {
			t.Fatal("it never expires")
		}
		time.Sleep(100 * time.Millisecond)
	}
	if r := oz.grant(a); r.code != 1 || !strings.Contains(r.err, "it is expired") {
		t.Errorf("granted after its end: %+v", r)
	}
	if r := o.ok("key", "show", "7"); strings.Contains(r.out, "destroy") {
		t.Errorf("destroyed: %s", r.out)
	}
	o.kill()
	o.open("TRIKEY_ADMIN_LOCAL=none")
	if r := o.run("key", "list"); r.code != 4 || !strings.Contains(r.err, "admin.local: none") {
		t.Errorf("the socket serves: %+v", r)
	}
	o.kill()
	o.open("TRIKEY_ADMIN_LOCAL=recovery")
	o.ok("key", "list")
	o.ok("admin", "list")
	if r := o.run("key", "rotate", "7"); r.code != 4 {
		t.Errorf("the socket serves: %+v", r)
	}
}

// TestPeopleAtTerminal: at a terminal secrets are asked for and not shown, the authenticator's
// secret is drawn, and who approves sees what will happen and types yes.
func TestPeopleAtTerminal(t *testing.T) {
	t.Parallel()
	o := newOffice(t, nil)
	ann := o.first("ann", "admin")
	var i struct {
		Half string
		Own  string `json:"own_half"`
	}
	o.ok("admin", "create", "--role", "officer", "oz", "-o", "json").json(t, &i)
	oz := &person{office: o, name: "oz", password: "correct horse battery", home: t.TempDir()}
	x := oz.atTerminal("login", "--enrol")
	x.answer("Name: ", "oz")
	x.answer("One half", i.Own)
	x.answer("The other half: ", i.Half)
	x.answer("New password", oz.password)
	x.answer("once more: ", "something else")
	x.shows("not the same")
	x.ends(2)

	x = oz.atTerminal("login", "--enrol", "--name", "oz")
	x.answer("One half", i.Own)
	x.answer("The other half: ", i.Half)
	x.answer("New password", oz.password)
	x.answer("once more: ", oz.password)
	x.shows("█")
	x.shows("or by hand, time based, the secret ")
	x.shows("\n")
	x.mu.Lock()
	shown := x.seen
	x.mu.Unlock()
	if strings.Contains(shown, oz.password) {
		t.Error("the terminal shows the password")
	}
	oz.readSecret(shown)
	x.answer("Password: ", oz.password)
	x.answer("Code: ", oz.code())
	x.shows("You are oz, officer")
	x.ends(0)

	ann.must("", "app", "create", "--name", "im")
	a := ann.ask("app", "allow-ip", "im", "::/0")
	x = oz.atTerminal("approve", "grant", a.ID)
	x.shows("EVERY ADDRESS")
	x.answer("Type yes", "y")
	x.shows("nothing is done")
	x.ends(2)
	x = oz.atTerminal("approve", "grant", a.ID)
	x.answer("Type yes", "yes")
	x.shows("Done: let app")
	x.ends(0)
	if r := o.ok("app", "show", "im"); !strings.Contains(r.out, "::/0") {
		t.Errorf("granted at the terminal, and not done: %s", r.out)
	}
	oz.must(oz.code()+"\n", "login", "--step-up")
}
