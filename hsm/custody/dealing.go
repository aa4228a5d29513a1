package custody

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// dealRoot draws a root key, deals it in memory, and forgets it: from here on it
// exists only as shares.
func (d *Desk) dealRoot(c *ceremony, m hsm.Manifest) error {
	root, err := secret.Random(hsm.RootSize)
	if err != nil {
		return err
	}
	defer root.Wipe()
	if m.KCV, err = rootKCV(root); err != nil {
		return err
	}
	m.RootID, m.Region = hsm.NewID(), d.cfg.Region
	return d.deal(c, root, m)
}

// deal makes the ceremony's shares of a root.
func (d *Desk) deal(c *ceremony, root *secret.Bytes, m hsm.Manifest) error {
	m.SplitID, m.Shares, m.Threshold = hsm.NewID(), uint8(c.plan.Shares), uint8(c.plan.Threshold)
	// What may be left on cards by a crash is known before the first card is
	// written.
	if err := durable.Write(d.cfg.Dir, pendingFile, pending{append(slices.Clone(c.leftover), m.SplitID)}); err != nil {
		return err
	}
	shares, err := hsm.Deal(root, m)
	if err != nil {
		return err
	}
	c.shares, c.manifest = shares, &shares[0].Manifest
	if c.before != nil {
		d.dropRotation()
	}
	return nil
}

// Deal writes the next share to a card and reads it back.
func (d *Desk) Deal(ctx context.Context, id hsm.CardID, pin *secret.Bytes) (hsm.Progress, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.show()
	c, err := d.step(hsm.StepDeal)
	if err != nil {
		return hsm.Progress{}, err
	}
	if slices.Contains(c.plan.Lost, id.Serial) {
		return hsm.Progress{}, lostCard(id)
	}
	if slices.ContainsFunc(c.dealt, func(x dealt) bool { return x.id.Key() == id.Key() }) {
		return hsm.Progress{}, fault.New(fault.CardRepeated, "card %q (serial %s) has its share already; insert another one", id.Label, id.Serial)
	}
	share := c.shares[len(c.dealt)]
	envelope, err := share.Marshal()
	if err != nil {
		return hsm.Progress{}, err
	}
	kept, err := keepPIN(pin)
	if err != nil {
		envelope.Wipe()
		return hsm.Progress{}, err
	}
	if err := secret.Scrub(func() error { return d.write(ctx, id, pin, share, envelope) }); err != nil {
		envelope.Wipe()
		kept.Wipe()
		return hsm.Progress{}, err
	}
	c.dealt = append(c.dealt, dealt{id: id, pin: kept, envelope: envelope})
	failpoint.HitNumber("dealt", len(c.dealt))
	return c.progress(), nil
}

// write puts an envelope on a card, closes the card, opens it again and looks for
// the envelope. A card that did not take it is left without it.
func (d *Desk) write(ctx context.Context, id hsm.CardID, pin *secret.Bytes, s *hsm.Share, envelope *secret.Bytes) error {
	err := d.withCard(ctx, id, pin, func(card hsm.Card) error {
		if err := d.clearLeftovers(ctx, card, id); err != nil {
			return err
		}
		failpoint.HitNumber("before-store", int(s.Index))
		if err := card.Store(ctx, shareLabel(s), envelope); err != nil {
			return err
		}
		failpoint.HitNumber("after-store", int(s.Index))
		return nil
	})
	if err != nil {
		return err
	}
	found := false
	err = d.withCard(ctx, id, pin, func(card hsm.Card) error {
		objects, err := card.Objects(ctx)
		for _, o := range objects {
			found = found || o.Equal(envelope)
			o.Wipe()
		}
		return err
	})
	if err == nil && !found {
		err = fault.New(fault.CardFull, "card %q (serial %s) did not keep the share that was written to it; use another card", id.Label, id.Serial)
	}
	if err != nil {
		return errors.Join(err, d.withCard(ctx, id, pin, func(card hsm.Card) error { return card.Remove(ctx, envelope) }))
	}
	return nil
}

// clearLeftovers removes shares of dealings that this machine began and never
// committed, or has superseded. It leaves the one that counts until the ceremony
// commits, and refuses a card that holds any other.
func (d *Desk) clearLeftovers(ctx context.Context, card hsm.Card, id hsm.CardID) error {
	objects, err := card.Objects(ctx)
	defer func() {
		for _, o := range objects {
			o.Wipe()
		}
	}()
	if err != nil {
		return err
	}
	for _, o := range objects {
		s, err := hsm.ParseShare(o)
		if errors.Is(err, fault.CardEmpty) {
			continue // somebody else's object
		}
		if err == nil {
			s.Value.Wipe()
		}
		switch {
		case err == nil && d.record != nil && s.Manifest.SplitID == d.record.SplitID:
			continue
		case err == nil && d.isStale(&s.Manifest):
		default:
			return fault.New(fault.CardInUse, "card %q (serial %s) holds a share already; "+
				"use an empty card, or format this one if nobody needs it any more", id.Label, id.Serial)
		}
		if err := card.Remove(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// isStale reports whether a share is of this machine, and of a dealing that does not
// count: one that never committed, or that another has superseded. The caller holds
// mu.
func (d *Desk) isStale(m *hsm.Manifest) bool {
	if d.ceremony != nil && slices.Contains(d.ceremony.leftover, m.SplitID) {
		return true
	}
	if d.ceremony != nil && d.ceremony.manifest != nil && m.SplitID == d.ceremony.manifest.SplitID {
		return false
	}
	return d.record != nil && m.MachineID == d.record.MachineID && m.SplitID != d.record.SplitID && m.Generation <= d.record.Generation+1
}

func shareLabel(s *hsm.Share) string {
	return fmt.Sprintf("trikey share %d", s.Index)
}

// Verify reads a dealt card once more.
func (d *Desk) Verify(ctx context.Context, id hsm.CardID, pin *secret.Bytes) (hsm.Progress, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.show()
	c, err := d.step(hsm.StepVerify)
	if err != nil {
		return hsm.Progress{}, err
	}
	at := slices.IndexFunc(c.dealt, func(x dealt) bool { return x.id.Key() == id.Key() })
	if at < 0 {
		return hsm.Progress{}, fault.New(fault.CardOtherMachine, "card %q (serial %s) is not one of this ceremony", id.Label, id.Serial)
	}
	var share *hsm.Share
	if err := secret.Scrub(func() (err error) { share, err = d.readShare(ctx, id, pin, c.manifest); return err }); err != nil {
		return hsm.Progress{}, err
	}
	if c.dealt[at].readBack != nil {
		c.dealt[at].readBack.Value.Wipe()
	}
	c.dealt[at].readBack = share
	failpoint.HitNumber("verified", c.verified())
	if c.verified() == int(c.manifest.Shares) {
		if err := c.rebuildDealt(); err != nil {
			return hsm.Progress{}, err
		}
	}
	return c.progress(), nil
}

// rebuildDealt rebuilds the root from what was read off the cards, often enough
// that every card takes part.
func (c *ceremony) rebuildDealt() error {
	for first := range c.dealt {
		key, err := rebuild(c.dealtQuorum(first))
		if err != nil {
			return err
		}
		key.Wipe()
	}
	return nil
}

// dealtQuorum returns as many of the shares read back as rebuild the root, beginning
// at one of them.
func (c *ceremony) dealtQuorum(first int) []*hsm.Share {
	shares := make([]*hsm.Share, c.manifest.Threshold)
	for i := range shares {
		shares[i] = c.dealt[(first+i)%len(c.dealt)].readBack
	}
	return shares
}

// Abort ends what is under way and takes dealt shares off the cards again. It
// tries every card, and says which it could not reach.
func (d *Desk) Abort(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.forget()
	d.dropAwaited()
	if d.ceremony == nil {
		return nil
	}
	if counts, err := d.counts(ctx); counts || err != nil {
		return err
	}
	var failed error
	for _, card := range d.ceremony.dealt {
		if card.envelope == nil {
			continue // of a rotation that can be taken up again
		}
		err := d.reopen(ctx, card.id, card.pin, func(c hsm.Card) error { return c.Remove(ctx, card.envelope) })
		if err != nil {
			failed = errors.Join(failed, fault.Wrap(fault.CodeOf(err), err, "card %q still carries a share of the aborted ceremony", card.id.Label))
		}
	}
	return failed
}
