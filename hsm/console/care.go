package console

import (
	"context"
	"net/http"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/internal/secret"
)

// What pinInfo is to a card's PIN, these are to the others: none can be put in
// another's place.
const (
	newPINInfo = "trikey/v1/new-pin/"
	soPINInfo  = "trikey/v1/so-pin/"
)

// careRequest is a cardRequest with what some of the calls of hsm.CardCare need more.
type careRequest struct {
	Card    hsm.CardID `json:"card"`
	PIN     []byte     `json:"pin,omitempty"`
	NewPIN  []byte     `json:"new_pin,omitempty"`
	SOPIN   []byte     `json:"so_pin,omitempty"`
	LastTry string     `json:"last_try,omitempty"`
	Force   string     `json:"force,omitempty"` // the card's serial, when a person has confirmed
}

func (h *handler) handleCare(mux *http.ServeMux) {
	handle(mux, "POST /v1/format", func(r *http.Request, in careRequest) (report hsm.FormatReport, err error) {
		pin, err := h.open(pinInfo, in.Card, in.PIN)
		if err != nil {
			return report, err
		}
		defer pin.Wipe()
		return h.console.Format(in.context(r), in.Card, pin, in.Force)
	})
	handle(mux, "POST /v1/change-pin", func(r *http.Request, in careRequest) (none jsonhttp.None, err error) {
		return none, h.withTwo(in.Card, pinInfo, in.PIN, newPINInfo, in.NewPIN, func(old, fresh *secret.Bytes) error {
			return h.console.ChangePIN(in.context(r), in.Card, old, fresh)
		})
	})
	handle(mux, "POST /v1/initialise", func(r *http.Request, in careRequest) (id hsm.CardID, err error) {
		err = h.withTwo(in.Card, soPINInfo, in.SOPIN, newPINInfo, in.NewPIN, func(soPIN, pin *secret.Bytes) (err error) {
			id, err = h.console.Initialise(in.context(r), in.Card, soPIN, pin)
			return err
		})
		return id, err
	})
}

// context outlives the caller: a card must not be left half changed because it went
// away.
func (in careRequest) context(r *http.Request) context.Context {
	return hsm.ConfirmLastTry(context.WithoutCancel(r.Context()), in.LastTry)
}

// withTwo opens two PINs for f.
func (h *handler) withTwo(card hsm.CardID, infoA string, sealedA []byte, infoB string, sealedB []byte, f func(a, b *secret.Bytes) error) error {
	a, err := h.open(infoA, card, sealedA)
	if err != nil {
		return err
	}
	defer a.Wipe()
	b, err := h.open(infoB, card, sealedB)
	if err != nil {
		return err
	}
	defer b.Wipe()
	return f(a, b)
}

// Format is Console.Format.
func (c *Client) Format(ctx context.Context, card hsm.CardID, pin *secret.Bytes, force string) (r hsm.FormatReport, err error) {
	seal, err := c.sealer(ctx, card)
	if err != nil {
		return r, err
	}
	in := careRequest{Card: card, LastTry: hsm.LastTry(ctx), Force: force}
	if in.PIN, err = seal(pinInfo, pin); err != nil {
		return r, err
	}
	err = c.call(ctx, http.MethodPost, "format", in, &r)
	return r, err
}

// ChangePIN is Console.ChangePIN.
func (c *Client) ChangePIN(ctx context.Context, card hsm.CardID, old, fresh *secret.Bytes) error {
	seal, err := c.sealer(ctx, card)
	if err != nil {
		return err
	}
	in := careRequest{Card: card, LastTry: hsm.LastTry(ctx)}
	if in.PIN, err = seal(pinInfo, old); err != nil {
		return err
	}
	if in.NewPIN, err = seal(newPINInfo, fresh); err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, "change-pin", in, nil)
}

// Initialise is Console.Initialise.
func (c *Client) Initialise(ctx context.Context, card hsm.CardID, soPIN, pin *secret.Bytes) (id hsm.CardID, err error) {
	seal, err := c.sealer(ctx, card)
	if err != nil {
		return id, err
	}
	in := careRequest{Card: card}
	if in.SOPIN, err = seal(soPINInfo, soPIN); err != nil {
		return id, err
	}
	if in.NewPIN, err = seal(newPINInfo, pin); err != nil {
		return id, err
	}
	err = c.call(ctx, http.MethodPost, "initialise", in, &id)
	return id, err
}
