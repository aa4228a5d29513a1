package console

import (
	"context"
	"net/http"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/internal/secret"
)

// approveRequest is a cardRequest with what the card approves.
type approveRequest struct {
	Card    hsm.CardID      `json:"card"`
	PIN     []byte          `json:"pin"`
	LastTry string          `json:"last_try,omitempty"`
	Request hsm.JoinRequest `json:"request"`
	Confirm string          `json:"confirm"`
}

type joinRequest struct {
	Grant hsm.JoinGrant `json:"grant"`
	Peer  string        `json:"peer"`
}

func (h *handler) handleJoins(mux *http.ServeMux) {
	handle(mux, "POST /v1/request-join", func(r *http.Request, _ jsonhttp.None) (hsm.JoinRequest, error) {
		return h.console.RequestJoin(r.Context())
	})
	handle(mux, "POST /v1/approve-join", func(r *http.Request, in approveRequest) (p hsm.JoinProgress, err error) {
		pin, err := h.open(pinInfo, in.Card, in.PIN)
		if err != nil {
			return p, err
		}
		defer pin.Wipe()
		ctx := hsm.ConfirmLastTry(context.WithoutCancel(r.Context()), in.LastTry)
		return h.console.ApproveJoin(ctx, in.Request, in.Confirm, in.Card, pin)
	})
	handle(mux, "POST /v1/join", func(r *http.Request, in joinRequest) (hsm.Status, error) {
		return h.console.Join(context.WithoutCancel(r.Context()), in.Grant, in.Peer)
	})
}

// RequestJoin is Console.RequestJoin.
func (c *Client) RequestJoin(ctx context.Context) (r hsm.JoinRequest, err error) {
	err = c.call(ctx, http.MethodPost, "request-join", nil, &r)
	return r, err
}

// ApproveJoin is Console.ApproveJoin.
func (c *Client) ApproveJoin(ctx context.Context, r hsm.JoinRequest, confirm string, card hsm.CardID, pin *secret.Bytes) (p hsm.JoinProgress, err error) {
	seal, err := c.sealer(ctx, card)
	if err != nil {
		return p, err
	}
	in := approveRequest{Card: card, LastTry: hsm.LastTry(ctx), Request: r, Confirm: confirm}
	if in.PIN, err = seal(pinInfo, pin); err != nil {
		return p, err
	}
	err = c.call(ctx, http.MethodPost, "approve-join", in, &p)
	return p, err
}

// Join is Console.Join.
func (c *Client) Join(ctx context.Context, g hsm.JoinGrant, peer string) (s hsm.Status, err error) {
	err = c.call(ctx, http.MethodPost, "join", joinRequest{g, peer}, &s)
	return s, err
}
