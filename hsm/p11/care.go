package p11

import (
	"context"
	"errors"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/pintry"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// counted is the attempt of a key card's PIN: it counts, and stops before the card
// locks unless the request carries a person's confirmation.
func (r *Reader) counted(ctx context.Context) attempt {
	return func(card hsm.CardInfo, login func() error) error {
		return pintry.Login(r.tries, card, func() bool { return hsm.SpendLastTry(ctx, card.Serial) }, login)
	}
}

// ChangePIN changes a card's PIN. The old PIN is tried by a login, which counts it, so
// that the change itself cannot be a wrong try.
func (r *Reader) ChangePIN(ctx context.Context, id hsm.CardID, old, fresh *secret.Bytes) (err error) {
	if fresh.Len() == 0 {
		return fault.New(fault.BadRequest, "new_pin: it is empty; nothing was changed")
	}
	opened, err := r.Login(ctx, id, old)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	c, ok := opened.(*card)
	if !ok {
		return fault.New(fault.Internal, "a reader's card is a %T", opened)
	}
	return c.s.call("change the PIN", func(p *pkcs11.Ctx) error {
		return old.Use(func(o []byte) error {
			return fresh.Use(func(f []byte) error { return p.SetPIN(c.s.handle, pinString(o), pinString(f)) })
		})
	})
}

// Initialise makes a token of the one blank card that is inserted.
func (r *Reader) Initialise(ctx context.Context, id hsm.CardID, soPIN, pin *secret.Bytes) (hsm.CardID, error) {
	if err := r.take(ctx); err != nil {
		return hsm.CardID{}, err
	}
	defer r.release()
	cfg, err := r.blank(id)
	if err != nil {
		return hsm.CardID{}, err
	}
	fresh, err := initialise(cfg, id, soPIN, pin)
	if err != nil {
		return hsm.CardID{}, err
	}
	// Tries of a token of before, with another PIN, say nothing of this one.
	return fresh, r.tries.Clear(fresh)
}

// blank returns the module of the blank card that id means. The caller has the turn.
func (r *Reader) blank(id hsm.CardID) (cfg ModuleConfig, err error) {
	var blanks []string
	for _, candidate := range r.modules {
		if id.Module != "" && id.Module != candidate.Path {
			continue
		}
		m, err := openModule(candidate)
		if err != nil {
			return cfg, err
		}
		list, err := m.tokens()
		if err = errors.Join(err, m.close()); err != nil {
			return cfg, err
		}
		for _, t := range list {
			if id.Serial != "" && t.info.Serial != id.Serial {
				continue
			}
			if !t.info.Initialised {
				blanks = append(blanks, "serial "+t.info.Serial+" in "+candidate.Path)
				cfg = candidate
			} else if id.Serial != "" {
				return cfg, fault.New(fault.Conflict, "%s is a token already, and was not touched; "+
					"erase it with its maker's tool first, if nobody needs what is on it", pintry.Name(t.info.CardID))
			}
		}
	}
	switch len(blanks) {
	case 0:
		return cfg, fault.New(fault.CardAbsent, "no blank card is in a reader; insert it")
	case 1:
		return cfg, nil
	}
	return cfg, fault.New(fault.Conflict, "%d blank cards are in the readers (%s); leave one inserted, or name it by its serial and module",
		len(blanks), strings.Join(blanks, "; "))
}
