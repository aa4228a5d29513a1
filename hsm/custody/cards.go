package custody

import (
	"context"
	"errors"
	"strings"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// maxLabel is how long the label of a token may be (PKCS#11 v2.40, CK_TOKEN_INFO).
const maxLabel = 32

// idle reports why a card cannot be changed now. The caller holds mu.
func (d *Desk) idle() error {
	if d.ceremony != nil {
		return fault.New(fault.Conflict, "a ceremony is under way at this machine; finish or abort it first")
	}
	return nil
}

// Format removes every Trikey object from a card.
func (d *Desk) Format(ctx context.Context, id hsm.CardID, pin *secret.Bytes, force string) (report hsm.FormatReport, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	report.Card = id
	if err := d.idle(); err != nil {
		return report, err
	}
	if id.Serial == "" {
		return report, fault.New(fault.BadRequest, "card: name the card to format by its serial")
	}
	err = secret.Scrub(func() error {
		err := d.withCard(ctx, id, pin, func(card hsm.Card) error { return d.format(ctx, card, force, &report) })
		if err != nil {
			return err
		}
		// Opened again: a card that was pulled out may look empty, and a share that is
		// believed to be destroyed must be.
		if err := d.withCard(ctx, id, pin, func(card hsm.Card) error { return nothingLeft(ctx, card, report) }); err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "whether card %q (serial %s) is formatted could not be seen; insert it and format it again",
				id.Label, id.Serial)
		}
		return nil
	})
	return report, err
}

func (d *Desk) format(ctx context.Context, card hsm.Card, force string, report *hsm.FormatReport) error {
	objects, err := card.Objects(ctx)
	defer func() {
		for _, o := range objects {
			o.Wipe()
		}
	}()
	if err != nil {
		return err
	}
	ours := objects[:0:0]
	for _, o := range objects {
		s, err := hsm.ParseShare(o)
		if errors.Is(err, fault.CardEmpty) {
			report.Foreign++
			continue
		}
		// A share that is damaged is Trikey's too, and of this dealing if the card is.
		current := d.isOurs(report.Card.Serial)
		if err == nil {
			s.Value.Wipe()
			current = d.record != nil && s.Manifest.MachineID == d.record.MachineID && s.Manifest.SplitID == d.record.SplitID
		}
		if current && (force == "" || force != report.Card.Serial) {
			return fault.New(fault.CardInUse, "card %q (serial %s) holds a share of this machine's current dealing, any %d of which open it, "+
				"and nothing was removed; if it is to be lost, confirm that by the card's serial (--force %s; on a terminal, type it when asked)",
				report.Card.Label, report.Card.Serial, d.record.Threshold, report.Card.Serial)
		}
		ours = append(ours, o)
	}
	for _, o := range ours {
		if err := card.Remove(ctx, o); err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "card %q (serial %s): %d of its %d Trikey objects are removed; insert it and format it again",
				report.Card.Label, report.Card.Serial, report.Removed, len(ours))
		}
		report.Removed++
	}
	return nil
}

// nothingLeft reports an object of Trikey's that is on a card after all.
func nothingLeft(ctx context.Context, card hsm.Card, report hsm.FormatReport) error {
	left := 0
	err := eachShare(ctx, card, func(_ *hsm.Share, err error) (keep bool) {
		if fault.CodeOf(err) != fault.CardEmpty {
			left++
		}
		return false
	})
	if err == nil && left > 0 {
		err = fault.New(fault.CardDamaged, "%d of its objects were removed, but %d are still there: destroy the card", report.Removed, left)
	}
	return err
}

// Initialise makes a token of a blank card.
func (d *Desk) Initialise(ctx context.Context, id hsm.CardID, soPIN, pin *secret.Bytes) (hsm.CardID, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.idle(); err != nil {
		return hsm.CardID{}, err
	}
	switch {
	case strings.TrimSpace(id.Label) != id.Label || id.Label == "" || len(id.Label) > maxLabel:
		return hsm.CardID{}, fault.New(fault.BadRequest, "label: %q is not possible; give one of 1 to %d bytes, without blanks around it", id.Label, maxLabel)
	case soPIN.Len() == 0 || pin.Len() == 0:
		return hsm.CardID{}, fault.New(fault.BadRequest, "pin: the SO PIN or the PIN is empty; nothing was done")
	case soPIN.Equal(pin):
		return hsm.CardID{}, fault.New(fault.BadRequest, "so_pin: it is the PIN too; whoever knows the card's PIN could unlock and erase it: choose another")
	}
	return d.cfg.Reader.Initialise(ctx, id, soPIN, pin)
}

// ChangePIN changes a card's PIN.
func (d *Desk) ChangePIN(ctx context.Context, id hsm.CardID, old, fresh *secret.Bytes) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.idle(); err != nil {
		return err
	}
	if old.Equal(fresh) {
		return fault.New(fault.BadRequest, "new_pin: it is the old one; nothing was changed")
	}
	if err := d.cfg.Reader.ChangePIN(ctx, id, old, fresh); err != nil {
		return err
	}
	// Now, not at the next unsealing, it shows whether the card has taken it.
	if err := d.withCard(ctx, id, fresh, func(hsm.Card) error { return nil }); err != nil {
		return fault.Wrap(fault.CodeOf(err), err, "whether card %q (serial %s) has taken its new PIN could not be seen; "+
			"insert it and inspect it with the new PIN, then with the old one", id.Label, id.Serial)
	}
	return nil
}
