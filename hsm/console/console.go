// Package console carries an hsm.Console over the machine's unix socket: Handler
// is the machine's end, Dial the command's.
//
// PINs do not cross the socket in the clear, nor does the HTTP that carries them see
// one: each is sealed by HPKE (RFC 9180) to a key that the machine makes when it
// starts, and is opened into protected memory.
package console

import (
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"errors"
	"net"
	"net/http"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/internal/unixsock"
)

// base is where requests of a unix socket seem to go.
const base = "http://machine/v1/"

const maxBody = 64 << 10

// pinInfo separates these HPKE messages from any other; the card's serial makes a
// sealed PIN worthless for another card.
const pinInfo = "trikey/v1/pin/"

func kem() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

// cardRequest names a card and carries its PIN, sealed.
type cardRequest struct {
	Card    hsm.CardID `json:"card"`
	PIN     []byte     `json:"pin"`
	LastTry string     `json:"last_try,omitempty"` // the serial, when a person has confirmed the try
}

type commitRequest struct {
	KCV string `json:"kcv"`
}

type pinKey struct {
	PublicKey []byte `json:"public_key"`
}

type cardList struct {
	Cards []hsm.CardInfo `json:"cards"`
}

// handler is the machine's end.
type handler struct {
	console hsm.Console
	private hpke.PrivateKey
}

// Handler returns the HTTP handler of the machine's socket.
func Handler(c hsm.Console) (http.Handler, error) {
	private, err := kem().GenerateKey()
	if err != nil {
		return nil, err
	}
	h := &handler{c, private}
	mux := http.NewServeMux()
	handle(mux, "GET /v1/pin-key", func(*http.Request, jsonhttp.None) (pinKey, error) {
		return pinKey{private.PublicKey().Bytes()}, nil
	})
	handle(mux, "GET /v1/status", func(r *http.Request, _ jsonhttp.None) (hsm.Status, error) { return c.Status(r.Context()) })
	handle(mux, "GET /v1/cards", func(r *http.Request, _ jsonhttp.None) (cardList, error) {
		cards, err := c.Cards(r.Context())
		return cardList{cards}, err
	})
	handle(mux, "POST /v1/seal", func(r *http.Request, _ jsonhttp.None) (jsonhttp.None, error) {
		return jsonhttp.None{}, c.Seal(r.Context())
	})
	handle(mux, "POST /v1/abort", func(r *http.Request, _ jsonhttp.None) (jsonhttp.None, error) {
		return jsonhttp.None{}, c.Abort(r.Context())
	})
	handle(mux, "POST /v1/begin", func(r *http.Request, plan hsm.Plan) (hsm.Progress, error) { return c.Begin(r.Context(), plan) })
	handle(mux, "POST /v1/commit", func(r *http.Request, in commitRequest) (hsm.Report, error) {
		// A switch to a new root must not stop half way because the caller went away.
		return c.Commit(context.WithoutCancel(r.Context()), in.KCV)
	})
	handle(mux, "GET /v1/progress", func(r *http.Request, _ jsonhttp.None) (hsm.Progress, error) { return c.Progress(r.Context()) })
	handle(mux, "POST /v1/gather", withPIN(h, c.Gather))
	handle(mux, "POST /v1/present", withPIN(h, c.Present))
	handle(mux, "POST /v1/inspect", withPIN(h, c.Inspect))
	h.handleCare(mux)
	h.handleWindows(mux)
	h.handleJoins(mux)
	handle(mux, "POST /v1/deal", withPIN(h, c.Deal))
	handle(mux, "POST /v1/verify", withPIN(h, c.Verify))
	return mux, nil
}

func handle[In, Out any](mux *http.ServeMux, pattern string, f func(*http.Request, In) (Out, error)) {
	mux.HandleFunc(pattern, jsonhttp.Handle(maxBody, f))
}

// withPIN opens the request's PIN for a call that needs one.
func withPIN[Out any](h *handler, f func(context.Context, hsm.CardID, *secret.Bytes) (Out, error)) func(*http.Request, cardRequest) (Out, error) {
	return func(r *http.Request, in cardRequest) (out Out, err error) {
		pin, err := h.open(pinInfo, in.Card, in.PIN)
		if err != nil {
			return out, err
		}
		defer pin.Wipe()
		// A card must not be left half written because the caller went away.
		return f(hsm.ConfirmLastTry(context.WithoutCancel(r.Context()), in.LastTry), in.Card, pin)
	}
}

func (h *handler) open(info string, card hsm.CardID, sealed []byte) (*secret.Bytes, error) {
	plain, err := hpke.Open(h.private, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(info+card.Serial), sealed)
	if err != nil {
		return nil, fault.New(fault.BadRequest, "pin: not sealed to this machine's key; it may have been restarted: try again")
	}
	return secret.Move(plain)
}

// Client is the command's end of the socket.
type Client struct {
	http *http.Client
	path string
}

var _ hsm.Console = (*Client)(nil)

// Dial returns the console behind a socket. Nothing is sent before the first call.
func Dial(path string) *Client { return &Client{unixsock.Client(path), path} }

func (c *Client) call(ctx context.Context, method, name string, in, out any) error {
	err := jsonhttp.Do(ctx, c.http, method, base+name, nil, in, out)
	if dial := (*net.OpError)(nil); errors.As(err, &dial) {
		return fault.Wrap(fault.Unavailable, err, "no machine answers at %s: is it running (trikey serve)?", c.path)
	}
	return err
}

// sealed calls with a PIN.
func (c *Client) sealed(ctx context.Context, name string, card hsm.CardID, pin *secret.Bytes, out any) error {
	seal, err := c.sealer(ctx, card)
	if err != nil {
		return err
	}
	in := cardRequest{Card: card, LastTry: hsm.LastTry(ctx)}
	if in.PIN, err = seal(pinInfo, pin); err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, name, in, out)
}

// sealer returns what seals PINs of a card to the machine's key.
func (c *Client) sealer(ctx context.Context, card hsm.CardID) (func(info string, pin *secret.Bytes) ([]byte, error), error) {
	var key pinKey
	if err := c.call(ctx, http.MethodGet, "pin-key", nil, &key); err != nil {
		return nil, err
	}
	public, err := kem().NewPublicKey(key.PublicKey)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the machine's key for PINs")
	}
	return func(info string, pin *secret.Bytes) (sealed []byte, err error) {
		err = pin.Use(func(p []byte) (err error) {
			sealed, err = hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(info+card.Serial), p)
			return err
		})
		return sealed, err
	}, nil
}

// Status is Console.Status.
func (c *Client) Status(ctx context.Context) (s hsm.Status, err error) {
	err = c.call(ctx, http.MethodGet, "status", nil, &s)
	return s, err
}

// Cards is Console.Cards.
func (c *Client) Cards(ctx context.Context) ([]hsm.CardInfo, error) {
	var out cardList
	err := c.call(ctx, http.MethodGet, "cards", nil, &out)
	return out.Cards, err
}

// Inspect is Console.Inspect.
func (c *Client) Inspect(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (r hsm.CardReport, err error) {
	err = c.sealed(ctx, "inspect", card, pin, &r)
	return r, err
}

// Present is Console.Present.
func (c *Client) Present(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (s hsm.Status, err error) {
	err = c.sealed(ctx, "present", card, pin, &s)
	return s, err
}

// Begin is Console.Begin.
func (c *Client) Begin(ctx context.Context, plan hsm.Plan) (p hsm.Progress, err error) {
	err = c.call(ctx, http.MethodPost, "begin", plan, &p)
	return p, err
}

// Progress is Console.Progress.
func (c *Client) Progress(ctx context.Context) (p hsm.Progress, err error) {
	err = c.call(ctx, http.MethodGet, "progress", nil, &p)
	return p, err
}

// Gather is Console.Gather.
func (c *Client) Gather(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (p hsm.Progress, err error) {
	err = c.sealed(ctx, "gather", card, pin, &p)
	return p, err
}

// Deal is Console.Deal.
func (c *Client) Deal(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (p hsm.Progress, err error) {
	err = c.sealed(ctx, "deal", card, pin, &p)
	return p, err
}

// Verify is Console.Verify.
func (c *Client) Verify(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (p hsm.Progress, err error) {
	err = c.sealed(ctx, "verify", card, pin, &p)
	return p, err
}

// Commit is Console.Commit.
func (c *Client) Commit(ctx context.Context, kcv string) (r hsm.Report, err error) {
	err = c.call(ctx, http.MethodPost, "commit", commitRequest{kcv}, &r)
	return r, err
}

// Abort is Console.Abort.
func (c *Client) Abort(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "abort", nil, nil)
}

// Seal is Console.Seal.
func (c *Client) Seal(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "seal", nil, nil)
}
