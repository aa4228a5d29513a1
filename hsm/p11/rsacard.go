package p11

import (
	"context"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// rsaCard is a card of FormRSA that is logged in to: it opens what is sealed in a file.
// A copy of the file from before a removal opens with the card as it did.
type rsaCard struct {
	*card
	cfg    ModuleConfig
	serial string
}

var _ hsm.Card = (*rsaCard)(nil)

// read returns the card's file and key. The key is nil when the card has none, which
// goes with a file without entries only.
func (c *rsaCard) read() (*sealedFile, *cardKey, error) {
	f, err := readSealed(c.cfg.Shares, c.serial)
	if err != nil {
		return nil, nil, err
	}
	k, err := c.s.findKey(c.cfg.key())
	if err == nil && len(f.entries) > 0 && (k == nil || k.id != f.key) {
		err = fault.New(fault.CardMismatch, "%s was sealed to another key than this card has: the card was initialised anew, or has another's serial; "+
			"use another card, or move the file away", f.path)
	}
	return f, k, err
}

// Objects opens everything that was sealed to the card.
func (c *rsaCard) Objects(ctx context.Context) (values []*secret.Bytes, err error) {
	f, k, err := c.read()
	if err != nil {
		return nil, err
	}
	for i := range f.entries {
		var value *secret.Bytes
		if err = ctx.Err(); err == nil {
			value, err = c.open(f, k, &f.entries[i])
		}
		if err != nil {
			for _, v := range values {
				v.Wipe()
			}
			return nil, err
		}
		values = append(values, value)
	}
	return values, nil
}

// Store seals a value to the card, and makes the card's key first where there is none.
// The card cannot label what it does not hold.
func (c *rsaCard) Store(_ context.Context, _ string, value *secret.Bytes) error {
	f, k, err := c.read()
	if err != nil {
		return err
	}
	if value.Len() > hsm.MaxEnvelope {
		return fault.New(fault.CardFull, "a card takes %d bytes at most, not %d", hsm.MaxEnvelope, value.Len())
	}
	if k == nil {
		if k, err = c.s.makeKey(c.cfg.key()); err != nil {
			return err
		}
	}
	f.key = k.id
	e, err := c.seal(f, k, value)
	if err != nil {
		return err
	}
	// A card that cannot open it is noticed before there is a file that says otherwise.
	again, err := c.open(f, k, &e)
	if err != nil {
		return err
	}
	defer again.Wipe()
	if !again.Equal(value) {
		return fault.New(fault.CardFull, "the card opens something else than what was sealed to it; use another card")
	}
	f.entries = append(f.entries, e)
	return f.write()
}

// Remove takes out what holds exactly this value.
func (c *rsaCard) Remove(ctx context.Context, value *secret.Bytes) error {
	f, k, err := c.read()
	if err != nil {
		return err
	}
	var kept []sealedEntry
	for i := range f.entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		v, err := c.open(f, k, &f.entries[i])
		if err != nil {
			return err
		}
		if !v.Equal(value) {
			kept = append(kept, f.entries[i])
		}
		v.Wipe()
	}
	if len(kept) == len(f.entries) {
		return nil
	}
	f.entries = kept
	return f.write()
}
