package custody

import (
	"context"
	"slices"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Gather gives a card to the ceremony. The card that completes the number needed
// authorises it: the root is rebuilt and its check value compared.
func (d *Desk) Gather(ctx context.Context, id hsm.CardID, pin *secret.Bytes) (p hsm.Progress, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.show()
	c, err := d.gathering()
	if err != nil {
		return hsm.Progress{}, err
	}
	// On a stack that is burnt afterwards.
	if err := secret.Scrub(func() error { return d.gather(ctx, c, id, pin) }); err != nil {
		return hsm.Progress{}, err
	}
	failpoint.HitNumber("gathered", len(c.gathered))
	if len(c.gathered) == c.need {
		if err := d.authorise(ctx, c); err != nil {
			return hsm.Progress{}, err
		}
	}
	return c.progress(), nil
}

// gathering returns the ceremony if it takes a card. A test of cards, and a
// destruction, take all that there are.
func (d *Desk) gathering() (*ceremony, error) {
	if d.ceremony != nil && !d.ceremony.deals() && d.destroying == nil && len(d.ceremony.gathered) < int(d.ceremony.before.Shares) {
		d.wait()
		return d.ceremony, nil
	}
	return d.step(hsm.StepGather)
}

func (d *Desk) gather(ctx context.Context, c *ceremony, id hsm.CardID, pin *secret.Bytes) error {
	if slices.Contains(c.plan.Lost, id.Serial) {
		return lostCard(id)
	}
	if slices.ContainsFunc(c.gathered, func(h held) bool { return h.id.Key() == id.Key() }) {
		return fault.New(fault.CardRepeated, "card %q (serial %s) was given already; insert another one: %d of %d given",
			id.Label, id.Serial, len(c.gathered), c.need)
	}
	share, err := d.readShare(ctx, id, pin, &c.before.Manifest)
	if d.isErased(id, err) {
		share, err = &hsm.Share{}, nil
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(c.gathered, func(h held) bool { return h.share.Index == share.Index && share.Index != 0 }) {
		share.Value.Wipe()
		return fault.New(fault.CardRepeated, "card %q holds share %d, which was given already by another card: it is a copy; "+
			"insert another one", id.Label, share.Index)
	}
	kept, err := keepPIN(pin)
	if err != nil {
		share.Value.Wipe()
		return err
	}
	c.gathered = append(c.gathered, held{id, kept, share})
	return nil
}

func lostCard(id hsm.CardID) error {
	return fault.New(fault.CardLost, "card %q (serial %s) was declared lost in this ceremony; if it is here after all, abort and begin again without",
		id.Label, id.Serial)
}

// authorise rebuilds the root from the cards gathered, and makes of it what the
// ceremony deals. When the cards do not rebuild it they are forgotten. The caller
// holds mu.
func (d *Desk) authorise(ctx context.Context, c *ceremony) (err error) {
	if d.destroying != nil {
		return nil // authorised before it was interrupted
	}
	root, err := rebuild(c.quorum(0))
	if err != nil {
		for _, h := range c.gathered {
			h.pin.Wipe()
			h.share.Value.Wipe()
		}
		c.gathered = nil
		return err
	}
	defer root.Wipe()
	if err := d.openFor(ctx, c, root); err != nil {
		return err
	}
	switch {
	case c.plan.Kind == hsm.Resplit || c.plan.Kind == hsm.ReplaceCard:
		return d.deal(c, root, c.before.Manifest)
	case c.plan.Kind == hsm.RotateRoot && c.manifest == nil:
		return d.dealRoot(c, hsm.Manifest{MachineID: c.before.MachineID, Generation: c.before.Generation + 1})
	}
	return nil
}

// quorum returns as many of the shares gathered as rebuild the root, beginning at one
// of them.
func (c *ceremony) quorum(first int) []*hsm.Share {
	shares := make([]*hsm.Share, c.before.Threshold)
	for i := range shares {
		shares[i] = c.gathered[(first+i)%len(c.gathered)].share
	}
	return shares
}

// openFor opens a sealed machine for a ceremony that changes what the service keeps: the
// cards that authorise it are those that open it.
func (d *Desk) openFor(ctx context.Context, c *ceremony, root *secret.Bytes) error {
	if !c.deals() {
		return nil
	}
	s, err := d.cfg.Engine.Status(ctx)
	if err != nil || s.State == hsm.Open {
		return err
	}
	return d.openWith(ctx, root)
}
