package custody

import (
	"context"
	"slices"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// ceremony is a ceremony under way.
type ceremony struct {
	id      hsm.ID
	plan    hsm.Plan
	started time.Time
	before  *hsm.Record // the machine's record when it began; nil for init

	need     int    // cards to gather
	gathered []held // cards that authorise it, are tested, or will be erased

	// What is dealt, from the moment it is known.
	manifest *hsm.Manifest
	shares   []*hsm.Share // by index; wiped when the ceremony ends
	dealt    []dealt
	leftover []hsm.ID // earlier dealings that never committed

	done, total int // records moved to the next root
}

// held is a card that was gathered, with what is needed to open it again.
type held struct {
	id    hsm.CardID
	pin   *secret.Bytes
	share *hsm.Share
}

// dealt is a card that carries its share now.
type dealt struct {
	id       hsm.CardID
	pin      *secret.Bytes // to take the share off again when the ceremony is aborted
	envelope *secret.Bytes // what was written; nil in a rotation that was taken up again
	readBack *hsm.Share    // what the verification round has read; nil before
}

func (c *ceremony) wipe() {
	hsm.WipeShares(c.shares)
	for _, card := range c.gathered {
		card.pin.Wipe()
		card.share.Value.Wipe()
	}
	for _, card := range c.dealt {
		card.pin.Wipe()
		card.envelope.Wipe()
		if card.readBack != nil {
			card.readBack.Value.Wipe()
		}
	}
}

func (c *ceremony) verified() int {
	n := 0
	for _, card := range c.dealt {
		if card.readBack != nil {
			n++
		}
	}
	return n
}

// deals reports whether the ceremony gives cards new shares.
func (c *ceremony) deals() bool {
	return c.plan.Kind != hsm.VerifyCards && c.plan.Kind != hsm.Destroy
}

// current is the dealing that the ceremony is about: the one that it makes, or the one
// that there is.
func (c *ceremony) current() *hsm.Manifest {
	if c.manifest != nil {
		return c.manifest
	}
	if c.before != nil {
		return &c.before.Manifest
	}
	return &hsm.Manifest{}
}

func (c *ceremony) progress() hsm.Progress {
	m := c.current()
	p := hsm.Progress{
		Ceremony: c.id, Kind: c.plan.Kind, Step: hsm.StepDeal, Gathered: len(c.gathered), Need: c.need, Dealt: len(c.dealt),
		Verified: c.verified(), Shares: c.plan.Shares, Threshold: c.plan.Threshold, KCV: m.KCV, Done: c.done, Total: c.total,
	}
	switch {
	case len(c.gathered) < c.need:
		p.Step = hsm.StepGather
	case !c.deals(), p.Verified == p.Shares:
		p.Step = hsm.StepCommit
	case p.Dealt == p.Shares:
		p.Step = hsm.StepVerify
	}
	return p
}

// given are the cards that the step has had.
func (c *ceremony) given() (keys []string) {
	switch step := c.progress().Step; {
	case step == hsm.StepGather || !c.deals():
		for _, h := range c.gathered {
			keys = append(keys, h.id.Key())
		}
	case step == hsm.StepDeal:
		for _, card := range c.dealt {
			keys = append(keys, card.id.Key())
		}
	default:
		for _, card := range c.dealt {
			if card.readBack != nil {
				keys = append(keys, card.id.Key())
			}
		}
	}
	return keys
}

// Progress tells how far the ceremony is. It does not wait for the step under way.
func (d *Desk) Progress(context.Context) (hsm.Progress, error) {
	d.published.Lock()
	defer d.published.Unlock()
	if d.shown.ceremony == nil {
		return hsm.Progress{}, errNoCeremony
	}
	return *d.shown.ceremony, nil
}

var errNoCeremony = fault.New(fault.NoCeremony, "no ceremony is under way; it may have waited too long and been forgotten: begin again")

// Begin starts a ceremony.
func (d *Desk) Begin(ctx context.Context, plan hsm.Plan) (hsm.Progress, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ceremony != nil {
		return hsm.Progress{}, fault.New(fault.Conflict, "a ceremony is under way at this machine; finish or abort it first")
	}
	if err := d.checkPlan(&plan); err != nil {
		return hsm.Progress{}, err
	}
	c := &ceremony{id: hsm.NewID(), plan: plan, started: d.cfg.Now().UTC(), before: d.record}
	if err := d.prepare(ctx, c); err != nil {
		c.wipe()
		return hsm.Progress{}, err
	}
	d.closeWindow("a ceremony began")
	d.ceremony = c
	d.wait()
	d.show()
	return c.progress(), nil
}

// errApart refuses a ceremony that would part a machine from the key store.
func errApart(kind hsm.CeremonyKind) error {
	return fault.New(fault.Conflict, "%s changes records of the key store, which a machine that runs apart does not have, and nothing was done: stop this machine "+
		"(and with rotate-root every service), run trikey serve with its configuration, the services' store and no machines, conduct the ceremony there, "+
		"and give the new record to every machine (trikey machine export-record, trikey machine adopt); docs/operations.md has the steps", kind)
}

// checkPlan fills in what the plan leaves open, and refuses what cannot be done.
func (d *Desk) checkPlan(plan *hsm.Plan) error {
	kinds := []hsm.CeremonyKind{hsm.Init, hsm.VerifyCards, hsm.Resplit, hsm.ReplaceCard, hsm.RotateRoot, hsm.Destroy}
	switch {
	case !slices.Contains(kinds, plan.Kind):
		return fault.New(fault.BadRequest, "kind: %q is no ceremony", plan.Kind)
	case plan.Kind == hsm.Init && d.record != nil:
		return fault.New(fault.MachineInitialised, "the machine is initialised already (key check value %s); "+
			"its cards open it: trikey machine unseal", d.record.KCV)
	case plan.Kind != hsm.Init && d.record == nil:
		return errBlank
	case d.cfg.Apart && (plan.Kind == hsm.Resplit || plan.Kind == hsm.ReplaceCard || plan.Kind == hsm.RotateRoot):
		return errApart(plan.Kind)
	case len(plan.Lost) > 0 && plan.Kind != hsm.ReplaceCard:
		return fault.New(fault.BadRequest, "lost: only replace-card declares cards lost")
	}
	if err := d.checkDestroying(plan); err != nil {
		return err
	}
	for _, serial := range plan.Lost {
		if !d.isOurs(serial) {
			return fault.New(fault.BadRequest, "lost: the machine has no card with serial %q; trikey machine status -o json lists them", serial)
		}
	}
	if plan.Kind == hsm.ReplaceCard && len(plan.Lost) == 0 {
		return fault.New(fault.BadRequest, "lost: name the card to replace, by its serial")
	}
	if plan.Shares == 0 && plan.Threshold == 0 && d.record != nil {
		plan.Shares, plan.Threshold = int(d.record.Shares), int(d.record.Threshold)
	}
	if plan.Shares < 2 || plan.Shares > hsm.MaxCards || plan.Threshold < 2 || plan.Threshold > plan.Shares {
		return fault.New(fault.BadRequest, "shares: %d of %d is not possible; take 2 to %d cards, of which at least 2 are needed",
			plan.Threshold, plan.Shares, hsm.MaxCards)
	}
	return nil
}

// prepare does what a ceremony begins with. The caller holds mu.
func (d *Desk) prepare(ctx context.Context, c *ceremony) error {
	left, err := readPending(d.cfg.Dir)
	if err != nil {
		return err
	}
	c.leftover = left.Splits
	switch c.plan.Kind {
	case hsm.Init:
		return d.dealRoot(c, hsm.Manifest{MachineID: hsm.NewID(), Generation: 1})
	case hsm.Destroy:
		// What is left after it must be too little to rebuild the root.
		c.need = max(int(d.record.Threshold), int(d.record.Shares)-int(d.record.Threshold)+1)
		return d.resumeDestroy(c)
	}
	c.need = int(d.record.Threshold)
	if c.plan.Kind == hsm.RotateRoot {
		return d.resumeRotation(ctx, c)
	}
	return nil
}

// step returns the ceremony under way if it is at the given step. The caller
// holds mu.
func (d *Desk) step(want hsm.Step) (*ceremony, error) {
	if d.ceremony == nil {
		return nil, errNoCeremony
	}
	if at := d.ceremony.progress().Step; at != want {
		return nil, fault.New(fault.Conflict, "the ceremony is at the step %q, not %q", at, want)
	}
	d.wait()
	return d.ceremony, nil
}

// keepPIN copies a PIN for the rest of the ceremony.
func keepPIN(pin *secret.Bytes) (*secret.Bytes, error) {
	return secret.Fill(pin.Len(), func(b []byte) error {
		return pin.Use(func(p []byte) error { copy(b, p); return nil })
	})
}
