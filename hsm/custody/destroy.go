package custody

import (
	"context"
	"errors"
	"path/filepath"
	"slices"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
)

// destroyingFile lists the cards that a destruction, once it is committed, has yet to
// erase. While it is there the machine does nothing else.
const destroyingFile = "destroying.json"

type destroying struct {
	Cards []string `json:"cards"` // hsm.CardID.Key
}

// settleDestruction finds, when the machine starts, a destruction that was interrupted,
// and ends one that has erased all its cards.
func (d *Desk) settleDestruction(ctx context.Context) error {
	var x destroying
	found, err := durable.Read(filepath.Join(d.cfg.Dir, destroyingFile), &x)
	if err != nil || !found {
		return err
	}
	d.destroying = &x
	if len(x.Cards) == 0 {
		return d.forgetRoot(ctx)
	}
	return nil
}

// checkDestroying allows nothing but to go on while the root is being destroyed. The
// caller holds mu.
func (d *Desk) checkDestroying(plan *hsm.Plan) error {
	under := d.destroying != nil
	switch {
	case under && (plan == nil || plan.Kind != hsm.Destroy || !plan.Resume):
		return fault.New(fault.Conflict, "the root key is being destroyed, and %d cards are yet to be erased; "+
			"finish it: trikey machine destroy --resume", len(d.destroying.Cards))
	case !under && plan != nil && plan.Kind == hsm.Destroy && plan.Resume:
		return fault.New(fault.NoCeremony, "no destruction was interrupted; begin one without --resume")
	}
	return nil
}

// isErased reports whether a card holds no share because the destruction under way has
// erased it and then died. The caller holds mu.
func (d *Desk) isErased(id hsm.CardID, err error) bool {
	return d.destroying != nil && slices.Contains(d.destroying.Cards, id.Key()) &&
		(errors.Is(err, fault.CardEmpty) || errors.Is(err, fault.CardDamaged))
}

// resumeDestroy asks for the cards that are left, whatever their number.
func (d *Desk) resumeDestroy(c *ceremony) error {
	if c.plan.Resume {
		c.need = len(d.destroying.Cards)
	}
	return nil
}

// destroy erases the cards of the ceremony, has the chip forget the key that seals the
// root, and removes the machine's record. It is committed before the first card is
// erased, and goes on after an interruption.
func (d *Desk) destroy(ctx context.Context, c *ceremony) (notes []string, err error) {
	if d.destroying == nil {
		x := &destroying{}
		for _, h := range c.gathered {
			x.Cards = append(x.Cards, h.id.Key())
		}
		if err := durable.Write(d.cfg.Dir, destroyingFile, x); err != nil {
			return nil, err
		}
		d.destroying = x
	}
	if err := d.seal(ctx); err != nil {
		return nil, err
	}
	for i, h := range c.gathered {
		failpoint.HitNumber("erase", i+1)
		if err := d.reopen(ctx, h.id, h.pin, func(card hsm.Card) error {
			return removeShares(ctx, card, func(m *hsm.Manifest) bool { return m.MachineID == d.record.MachineID })
		}); err != nil {
			notes = append(notes, "card "+h.id.Label+" (serial "+h.id.Serial+") was not erased: "+err.Error())
			continue
		}
		failpoint.HitNumber("erased", i+1)
		d.destroying.Cards = slices.DeleteFunc(d.destroying.Cards, func(s string) bool { return s == h.id.Key() })
		if err := durable.Write(d.cfg.Dir, destroyingFile, d.destroying); err != nil {
			return notes, err
		}
	}
	if n := len(d.destroying.Cards); n > 0 {
		return notes, fault.New(fault.CardsMissing, "%d cards are not erased yet; the root is destroyed only when they are: "+
			"trikey machine destroy --resume", n)
	}
	failpoint.Hit("erased")
	return notes, d.forgetRoot(ctx)
}

// forgetRoot ends a destruction: the chip forgets what seals the root, and the machine
// is blank.
func (d *Desk) forgetRoot(ctx context.Context) error {
	if err := d.cfg.Chip.Renew(ctx); err != nil {
		return err
	}
	failpoint.Hit("chip-renewed")
	// The list of cards goes last: until then the destruction is not over.
	err := errors.Join(durable.Remove(d.cfg.Dir, warmFile, rotationFile, pendingFile, identityFile, recordFile),
		durable.Remove(d.cfg.Dir, destroyingFile))
	if err == nil {
		d.record, d.destroying = nil, nil
	}
	return err
}
