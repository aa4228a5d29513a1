package custody

import (
	"context"
	"errors"
	"slices"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// readShare logs in to a card and returns the share on it that belongs to the
// dealing m. Where there is none it returns what is wrong with the likeliest.
func (d *Desk) readShare(ctx context.Context, id hsm.CardID, pin *secret.Bytes, m *hsm.Manifest) (*hsm.Share, error) {
	var found *hsm.Share
	problem := fault.New(fault.CardEmpty, "card %q (serial %s) holds no Trikey share: is it the right card?", id.Label, id.Serial)
	err := d.withCard(ctx, id, pin, func(card hsm.Card) error {
		return eachShare(ctx, card, func(s *hsm.Share, err error) (keep bool) {
			if err == nil {
				err = s.Check(m)
			}
			switch {
			case err == nil && found == nil:
				found = s
				return true
			case err != nil && errors.Is(problem, fault.CardEmpty) && !errors.Is(err, fault.CardEmpty):
				problem = err
			}
			return false
		})
	})
	if err != nil {
		if found != nil {
			found.Value.Wipe()
		}
		return nil, err
	}
	if found == nil {
		if errors.Is(problem, fault.CardEmpty) && d.isOurs(id.Serial) {
			problem = fault.New(fault.CardDamaged, "card %q (serial %s) was dealt a share of this machine, but no share can be read from it any more: "+
				"it is damaged or was erased; use another card, and replace this one", id.Label, id.Serial)
		}
		return nil, problem
	}
	return found, nil
}

// isOurs reports whether the machine's record has a card of that serial.
func (d *Desk) isOurs(serial string) bool {
	return d.record != nil && slices.ContainsFunc(d.record.Cards, func(c hsm.CardRecord) bool { return c.Serial == serial })
}

// withCard runs f on a card that is logged in to, where what the card's driver leaves in
// registers and on the stack is taken away.
func (d *Desk) withCard(ctx context.Context, id hsm.CardID, pin *secret.Bytes, f func(hsm.Card) error) error {
	return secret.Scrub(func() error {
		card, err := d.cfg.Reader.Login(ctx, id, pin)
		if err != nil {
			return err
		}
		return errors.Join(f(card), card.Close())
	})
}

// reopen is withCard for a PIN that the card has taken before: that others have since
// tried wrong ones must not keep a ceremony from clearing up.
func (d *Desk) reopen(ctx context.Context, id hsm.CardID, pin *secret.Bytes, f func(hsm.Card) error) error {
	return d.withCard(hsm.ConfirmLastTry(ctx, id.Serial), id, pin, f)
}

// eachShare calls f with every object on the card, as a share or as the reason why
// it is none, and wipes all those that f does not keep.
func eachShare(ctx context.Context, card hsm.Card, f func(s *hsm.Share, err error) (keep bool)) error {
	objects, err := card.Objects(ctx)
	if err != nil {
		return err
	}
	for _, o := range objects {
		s, err := hsm.ParseShare(o)
		o.Wipe()
		if keep := f(s, err); !keep && s != nil {
			s.Value.Wipe()
		}
	}
	return nil
}
