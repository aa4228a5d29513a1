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
	Serials []string `json:"serials"`
}

func readDestroying(dir string) ([]string, error) {
	var x destroying
	_, err := durable.Read(filepath.Join(dir, destroyingFile), &x)
	return x.Serials, err
}

// checkDestroying allows nothing but to go on while the root is being destroyed. The
// caller holds mu.
func (d *Desk) checkDestroying(plan *hsm.Plan) error {
	under := len(d.destroying) > 0
	switch {
	case under && (plan == nil || plan.Kind != hsm.Destroy || !plan.Resume):
		return fault.New(fault.Conflict, "the root key is being destroyed, and %d cards are yet to be erased; "+
			"finish it: trikey machine destroy --resume", len(d.destroying))
	case !under && plan != nil && plan.Kind == hsm.Destroy && plan.Resume:
		return fault.New(fault.NoCeremony, "no destruction was interrupted; begin one without --resume")
	}
	return nil
}

// resumeDestroy asks for the cards that are left, whatever their number.
func (d *Desk) resumeDestroy(c *ceremony) error {
	if c.plan.Resume {
		c.need = len(d.destroying)
	}
	return nil
}

// destroy erases the cards of the ceremony, has the chip forget the key that seals the
// root, and removes the machine's record. It is committed before the first card is
// erased, and goes on after an interruption.
func (d *Desk) destroy(ctx context.Context, c *ceremony) (notes []string, err error) {
	if len(d.destroying) == 0 {
		for _, h := range c.gathered {
			d.destroying = append(d.destroying, h.id.Serial)
		}
		if err := durable.Write(d.cfg.Dir, destroyingFile, destroying{d.destroying}); err != nil {
			d.destroying = nil
			return nil, err
		}
	}
	if err := d.seal(ctx); err != nil {
		return nil, err
	}
	for _, h := range c.gathered {
		failpoint.Hit("erase")
		if err := d.withCard(ctx, h.id, h.pin, func(card hsm.Card) error { return d.eraseCard(ctx, card) }); err != nil {
			notes = append(notes, "card "+h.id.Label+" (serial "+h.id.Serial+") was not erased: "+err.Error())
			continue
		}
		d.destroying = slices.DeleteFunc(d.destroying, func(s string) bool { return s == h.id.Serial })
		if err := durable.Write(d.cfg.Dir, destroyingFile, destroying{d.destroying}); err != nil {
			return notes, err
		}
	}
	if len(d.destroying) > 0 {
		return notes, fault.New(fault.CardsMissing, "%d cards are not erased yet; the root is destroyed only when they are: "+
			"trikey machine destroy --resume", len(d.destroying))
	}
	if err := d.cfg.Chip.Renew(ctx); err != nil {
		return notes, err
	}
	failpoint.Hit("chip-renewed")
	d.record = nil
	// The list of cards goes last: until then the destruction is not over.
	return notes, errors.Join(durable.Remove(d.cfg.Dir, warmFile, rotationFile, pendingFile, identityFile, recordFile),
		durable.Remove(d.cfg.Dir, destroyingFile))
}

// eraseCard removes every share of this machine.
func (d *Desk) eraseCard(ctx context.Context, card hsm.Card) error {
	objects, err := card.Objects(ctx)
	for _, o := range objects {
		if s, parseErr := hsm.ParseShare(o); parseErr == nil {
			s.Value.Wipe()
			if s.Manifest.MachineID == d.record.MachineID {
				err = errors.Join(err, card.Remove(ctx, o))
			}
		}
		o.Wipe()
	}
	return err
}
