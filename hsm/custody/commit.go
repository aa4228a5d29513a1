package custody

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Commit does what the ceremony is for. A commit that fails leaves the ceremony where
// it was: commit again, or abort.
func (d *Desk) Commit(ctx context.Context, kcv string) (hsm.Report, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.show()
	c, err := d.step(hsm.StepCommit)
	if err != nil {
		return hsm.Report{}, err
	}
	m := *c.current()
	if kcv != m.KCV {
		return hsm.Report{}, fault.New(fault.BadRequest, "kcv: %q was given, but the key check value is %s; compare and type it again", kcv, m.KCV)
	}
	identity, err := d.identity(ctx)
	if err != nil {
		return hsm.Report{}, err
	}
	failpoint.Hit("commit")
	report := c.report(m)
	switch c.plan.Kind {
	case hsm.VerifyCards:
		err = c.rebuildGathered()
	case hsm.Destroy:
		// Signed before the chip forgets the identity.
		report.Notes = append(report.Notes, "Signed before the cards were erased; each card says when it is.")
		if report, err = d.finishReport(ctx, identity, report); err == nil {
			report.Notes, err = d.destroy(ctx, c)
		}
		if err != nil {
			return hsm.Report{}, err
		}
		d.forget()
		return report, nil
	default:
		err = secret.Scrub(func() error { return d.switchTo(ctx, c) })
	}
	if err != nil {
		return hsm.Report{}, err
	}
	report.Notes = d.clearSuperseded(ctx, c)
	d.forget()
	return d.finishReport(ctx, identity, report)
}

// switchTo has the new dealing count, and makes it the machine's record.
func (d *Desk) switchTo(ctx context.Context, c *ceremony) error {
	record := c.newRecord(d.cfg.Now().UTC())
	var err error
	switch c.plan.Kind {
	case hsm.Resplit, hsm.ReplaceCard:
		err = d.resplit(ctx, record)
	case hsm.RotateRoot:
		err = d.rotate(ctx, c, record)
	}
	if err != nil {
		return err
	}
	if err := d.putRecord(record); err != nil {
		return err
	}
	failpoint.Hit("recorded")
	if c.plan.Kind == hsm.Resplit || c.plan.Kind == hsm.ReplaceCard {
		return d.resplit(ctx, record) // from now on the new split only
	}
	return nil
}

// putRecord writes the machine's record: the moment from which its cards open it.
func (d *Desk) putRecord(record *hsm.Record) error {
	if err := durable.Write(d.cfg.Dir, recordFile, record); err != nil {
		return fault.Wrap(fault.Internal, err, "write the machine's record; mend it and commit again")
	}
	d.record = record
	// The record decides; lists of leftovers that stay are harmless.
	_ = os.Remove(filepath.Join(d.cfg.Dir, pendingFile))
	_ = os.Remove(filepath.Join(d.cfg.Dir, rotationFile))
	return nil
}

// counts reports whether the ceremony under way counts although its commit failed: then
// its cards are the machine's. A rotation counts once the engine has followed the key
// store; the machine's record, if it could not be written, is tried once more.
func (d *Desk) counts(ctx context.Context) (bool, error) {
	c := d.ceremony
	if c.manifest == nil {
		return false, nil
	}
	if d.record != nil && d.record.SplitID == c.manifest.SplitID {
		return true, nil
	}
	if c.plan.Kind != hsm.RotateRoot {
		return false, nil
	}
	s, err := d.cfg.Engine.Status(ctx)
	if err != nil || s.RootID != c.manifest.RootID {
		return false, err
	}
	return true, d.putRecord(c.newRecord(d.cfg.Now().UTC()))
}

// resplit tells the service which split counts.
func (d *Desk) resplit(ctx context.Context, record *hsm.Record) error {
	if d.cfg.Service == nil {
		return nil
	}
	err := d.cfg.Service.Resplit(ctx, record.SplitID)
	failpoint.Hit("resplit-recorded")
	return err
}

// rebuildGathered rebuilds the root from the cards tested, often enough that each takes
// part.
func (c *ceremony) rebuildGathered() error {
	for first := range c.gathered {
		root, err := rebuild(c.quorum(first))
		if err != nil {
			return err
		}
		root.Wipe()
	}
	return nil
}

// clearSuperseded takes the shares that no longer count off every card of the
// ceremony, and says where that failed: such a share is refused anyway.
func (d *Desk) clearSuperseded(ctx context.Context, c *ceremony) (notes []string) {
	if !c.deals() || c.before == nil {
		return nil
	}
	done := map[string]bool{}
	clear := func(id hsm.CardID, pin *secret.Bytes) {
		if done[id.Key()] {
			return
		}
		done[id.Key()] = true
		err := d.reopen(ctx, id, pin, func(card hsm.Card) error { return removeShares(ctx, card, d.isStale) })
		if err != nil {
			notes = append(notes, "card "+id.Label+" (serial "+id.Serial+") still carries a superseded share: "+err.Error())
		}
		failpoint.Hit("cleared")
	}
	for _, card := range c.dealt {
		clear(card.id, card.pin)
	}
	for _, card := range c.gathered {
		clear(card.id, card.pin)
	}
	return notes
}

// removeShares removes from a card the shares of which f says so.
func removeShares(ctx context.Context, card hsm.Card, f func(*hsm.Manifest) bool) error {
	objects, err := card.Objects(ctx)
	for _, o := range objects {
		s, parseErr := hsm.ParseShare(o)
		if parseErr == nil {
			s.Value.Wipe()
			if f(&s.Manifest) {
				err = errors.Join(err, card.Remove(ctx, o))
			}
		}
		o.Wipe()
	}
	return err
}
