package custody

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// ceremony is a dealing under way: a root key that exists only as shares.
type ceremony struct {
	id       hsm.ID
	manifest hsm.Manifest
	shares   []*hsm.Share // by index; wiped when the ceremony ends
	dealt    []dealt
	leftover []hsm.ID // earlier dealings that never committed
}

// dealt is a card that carries its share now.
type dealt struct {
	id       hsm.CardID
	pin      *secret.Bytes // to take the share off again when the ceremony is aborted
	envelope *secret.Bytes // what was written
	readBack *hsm.Share    // what the verification round has read; nil before
}

func (c *ceremony) wipe() {
	hsm.WipeShares(c.shares)
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

func (c *ceremony) progress() hsm.Progress {
	p := hsm.Progress{
		Ceremony: c.id, Step: hsm.StepDeal, Dealt: len(c.dealt), Verified: c.verified(),
		Shares: int(c.manifest.Shares), Threshold: int(c.manifest.Threshold), KCV: c.manifest.KCV,
	}
	switch {
	case p.Verified == p.Shares:
		p.Step = hsm.StepCommit
	case p.Dealt == p.Shares:
		p.Step = hsm.StepVerify
	}
	return p
}

// Begin draws a root key, deals it in memory, and forgets it: from here on it
// exists only as shares.
func (d *Desk) Begin(_ context.Context, plan hsm.Plan) (hsm.Progress, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.record != nil:
		return hsm.Progress{}, fault.New(fault.MachineInitialised, "the machine is initialised already (key check value %s); "+
			"its cards open it: trikey machine unseal", d.record.KCV)
	case d.ceremony != nil:
		return hsm.Progress{}, fault.New(fault.Conflict, "a ceremony is under way at this machine; finish or abort it first")
	case plan.Shares < 2 || plan.Shares > hsm.MaxCards || plan.Threshold < 2 || plan.Threshold > plan.Shares:
		return hsm.Progress{}, fault.New(fault.BadRequest, "shares: %d of %d is not possible; take 2 to %d cards, of which at least 2 are needed",
			plan.Threshold, plan.Shares, hsm.MaxCards)
	}
	c, err := newCeremony(plan, d.cfg.Region)
	if err != nil {
		return hsm.Progress{}, err
	}
	// What may be left on cards by a crash is known before the first card is
	// written.
	left, err := readPending(d.cfg.Dir)
	if err == nil {
		c.leftover = left.Splits
		left.Splits = append(left.Splits, c.manifest.SplitID)
		err = writeJSON(d.cfg.Dir, pendingFile, left)
	}
	if err != nil {
		c.wipe()
		return hsm.Progress{}, err
	}
	d.ceremony = c
	d.wait()
	return c.progress(), nil
}

func newCeremony(plan hsm.Plan, region string) (*ceremony, error) {
	root, err := secret.Random(hsm.RootSize)
	if err != nil {
		return nil, err
	}
	defer root.Wipe()
	kcv, err := rootKCV(root)
	if err != nil {
		return nil, err
	}
	shares, err := hsm.Deal(root, hsm.Manifest{
		MachineID: hsm.NewID(), RootID: hsm.NewID(), SplitID: hsm.NewID(), Generation: 1,
		Threshold: uint8(plan.Threshold), Shares: uint8(plan.Shares), Region: region, KCV: kcv,
	})
	if err != nil {
		return nil, err
	}
	return &ceremony{id: hsm.NewID(), manifest: shares[0].Manifest, shares: shares}, nil
}

// step returns the ceremony under way if it is at the given step. The caller
// holds mu.
func (d *Desk) step(want hsm.Step) (*ceremony, error) {
	if d.ceremony == nil {
		return nil, fault.New(fault.NoCeremony, "no ceremony is under way; it may have waited too long and been forgotten: begin again")
	}
	if at := d.ceremony.progress().Step; at != want {
		return nil, fault.New(fault.Conflict, "the ceremony is at the step %q, not %q", at, want)
	}
	d.wait()
	return d.ceremony, nil
}

// Deal writes the next share to a card and reads it back.
func (d *Desk) Deal(ctx context.Context, id hsm.CardID, pin *secret.Bytes) (hsm.Progress, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, err := d.step(hsm.StepDeal)
	if err != nil {
		return hsm.Progress{}, err
	}
	if slices.ContainsFunc(c.dealt, func(x dealt) bool { return x.id.Serial == id.Serial }) {
		return hsm.Progress{}, fault.New(fault.CardRepeated, "card %q (serial %s) has its share already; insert another one", id.Label, id.Serial)
	}
	share := c.shares[len(c.dealt)]
	envelope, err := share.Marshal()
	if err != nil {
		return hsm.Progress{}, err
	}
	kept, err := secret.Fill(pin.Len(), func(b []byte) error {
		return pin.Use(func(p []byte) error { copy(b, p); return nil })
	})
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
	return c.progress(), nil
}

// write puts an envelope on a card, closes the card, opens it again and looks for
// the envelope. A card that did not take it is left without it.
func (d *Desk) write(ctx context.Context, id hsm.CardID, pin *secret.Bytes, s *hsm.Share, envelope *secret.Bytes) error {
	err := d.withCard(ctx, id, pin, func(card hsm.Card) error {
		if err := d.clearLeftovers(ctx, card, id); err != nil {
			return err
		}
		return card.Store(ctx, shareLabel(s), envelope)
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
// committed, and refuses a card that holds any other.
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
		if err != nil || !slices.Contains(d.ceremony.leftover, s.Manifest.SplitID) {
			return fault.New(fault.CardInUse, "card %q (serial %s) holds a share already; "+
				"use an empty card, or format this one if nobody needs it any more", id.Label, id.Serial)
		}
		if err := card.Remove(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

func shareLabel(s *hsm.Share) string {
	return fmt.Sprintf("trikey share %d", s.Index)
}

// Verify reads a dealt card once more.
func (d *Desk) Verify(ctx context.Context, id hsm.CardID, pin *secret.Bytes) (hsm.Progress, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, err := d.step(hsm.StepVerify)
	if err != nil {
		return hsm.Progress{}, err
	}
	at := slices.IndexFunc(c.dealt, func(x dealt) bool { return x.id.Serial == id.Serial })
	if at < 0 {
		return hsm.Progress{}, fault.New(fault.CardOtherMachine, "card %q (serial %s) is not one of this ceremony", id.Label, id.Serial)
	}
	var share *hsm.Share
	if err := secret.Scrub(func() (err error) { share, err = d.readShare(ctx, id, pin, &c.manifest); return err }); err != nil {
		return hsm.Progress{}, err
	}
	if c.dealt[at].readBack != nil {
		c.dealt[at].readBack.Value.Wipe()
	}
	c.dealt[at].readBack = share
	if c.verified() == int(c.manifest.Shares) {
		if err := c.rebuildAll(); err != nil {
			return hsm.Progress{}, err
		}
	}
	return c.progress(), nil
}

// rebuildAll rebuilds the root from what was read off the cards, often enough
// that every card takes part.
func (c *ceremony) rebuildAll() error {
	threshold := int(c.manifest.Threshold)
	for first := range c.dealt {
		shares := make([]*hsm.Share, threshold)
		for i := range shares {
			shares[i] = c.dealt[(first+i)%len(c.dealt)].readBack
		}
		key, err := rebuild(shares)
		if err != nil {
			return err
		}
		key.Wipe()
	}
	return nil
}

// Commit writes the machine's record: the moment from which the cards open it.
func (d *Desk) Commit(_ context.Context, kcv string) (hsm.Record, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, err := d.step(hsm.StepCommit)
	if err != nil {
		return hsm.Record{}, err
	}
	if kcv != c.manifest.KCV {
		return hsm.Record{}, fault.New(fault.BadRequest, "kcv: %q was given, but the key check value is %s; compare and type it again", kcv, c.manifest.KCV)
	}
	record := &hsm.Record{Manifest: c.manifest, Created: d.cfg.Now().UTC()}
	for i, card := range c.dealt {
		record.Cards = append(record.Cards, hsm.CardRecord{Index: uint8(i + 1), Serial: card.id.Serial, Label: card.id.Label})
	}
	if err := writeJSON(d.cfg.Dir, recordFile, record); err != nil {
		return hsm.Record{}, fault.Wrap(fault.Internal, err, "write the machine's record; nothing is committed: mend it and commit again")
	}
	d.record = record
	d.forget()
	// The record decides; a list of leftovers that stays is harmless.
	_ = os.Remove(filepath.Join(d.cfg.Dir, pendingFile))
	return *record, nil
}

// Abort ends what is under way and takes dealt shares off the cards again. It
// tries every card, and says which it could not reach.
func (d *Desk) Abort(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.forget()
	if d.ceremony == nil {
		return nil
	}
	var failed error
	for _, card := range d.ceremony.dealt {
		err := d.withCard(ctx, card.id, card.pin, func(c hsm.Card) error { return c.Remove(ctx, card.envelope) })
		if err != nil {
			failed = errors.Join(failed, fault.Wrap(fault.CodeOf(err), err, "card %q still carries a share of the aborted ceremony", card.id.Label))
		}
	}
	return failed
}
