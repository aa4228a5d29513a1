// Package resident is the token-resident engine: a machine whose token does the
// cryptography.
//
// A business key is drawn inside the token (hsm.Token), leaves it only wrapped by a
// key that is in the token too, and seals and opens data there by AES-256-GCM, which
// is all that this engine computes. The host has ciphertexts, plaintexts, the record
// key and the key that binds wrapped keys to their headers; never a business key.
//
// What it seals has a suite of its own (alg.AES256GCMResident): tokens do not compute
// the message key of the others. docs/adr/0010 tells why.
package resident

import (
	"context"
	"crypto/rand"
	"encoding/hex"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/engine"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

// maxMessages is half of what NIST SP 800-38D allows under one key with random nonces:
// another process may seal under the same.
const maxMessages = 1 << 31

// checkMethod is in front of a key check value: the first three bytes of the AES-CMAC of
// a zero block under the key itself, which is as much as a token computes.
const checkMethod = "cmac-aes-direct:"

// Config is what an engine needs.
type Config struct {
	Token  hsm.Token
	Region string // the only region whose keys the engine serves
	// Keys is how many business keys are kept unwrapped in the token, 16,384 when zero.
	Keys int
	// Messages is how many messages a process seals under one version of a key, 2^31
	// when zero.
	Messages uint64
}

// Engine is a machine whose token does the work.
type Engine struct {
	cfg   Config
	spent counts
	*roots
}

// roots are embedded by a name of this package's, so that the field is not exported.
type roots = engine.Roots[*session]

var _ hsm.Engine = (*Engine)(nil)

// New returns a sealed engine.
func New(cfg Config) *Engine {
	if cfg.Keys == 0 {
		cfg.Keys = 16 << 10
	}
	if cfg.Messages == 0 {
		cfg.Messages = maxMessages
	}
	return &Engine{cfg: cfg, roots: engine.NewRoots("token", cfg.Token, cfg.Region, func(ctx context.Context, root hsm.Root) (*session, error) {
		return newSession(ctx, cfg, root)
	})}
}

// Status tells whether the engine is open.
func (e *Engine) Status(ctx context.Context) (hsm.Status, error) {
	status, err := e.roots.Status(ctx)
	if err == nil {
		status.Memory = "the chip (business keys), " + status.Memory + " (record key)"
	}
	return status, err
}

// served returns fault.AlgorithmNotAllowed for any suite but those that the token seals
// with. A key's own suite is AES-256-GCM; its ciphertexts name the resident one.
func served(id alg.ID) error {
	switch id {
	case alg.AES256GCM, alg.AES256GCMResident:
		return nil
	}
	return fault.New(fault.AlgorithmNotAllowed, "%s: this machine's engine (machine.engine: token) computes AES-256-GCM only; "+
		"use aes-256-gcm, or a machine with the host engine", id)
}

// errSealsOnly is the refusal of what is not sealing and opening.
var errSealsOnly = fault.New(fault.AlgorithmNotAllowed, "this machine's engine (machine.engine: token) has keys of the purpose seal only; "+
	"for codes, signatures and deterministic sealing use a machine with machine.engine: host")

// GenerateKey has the token draw a business key and wrap it.
func (e *Engine) GenerateKey(ctx context.Context, b hsm.Binding) (hsm.GeneratedKey, error) {
	var made hsm.GeneratedKey
	err := e.Serve(ctx, func() error {
		if b.Purpose != hsm.PurposeSeal {
			return errSealsOnly
		}
		if err := served(b.Algorithm); err != nil {
			return err
		}
		b.Region = e.cfg.Region
		own, err := e.At(0)
		if err != nil {
			return err
		}
		wrapped, check, err := own.wrapping.Generate(ctx)
		if err != nil {
			return err
		}
		defer clear(check) // all but three bytes would confirm a guess of the key
		made.KCV = checkMethod + hex.EncodeToString(check[:3])
		made.Wrapped, err = own.bound(wrapped, b)
		return err
	})
	return made, err
}

// Do carries out the operations.
func (e *Engine) Do(ctx context.Context, ops []hsm.Op) error {
	return e.Serve(ctx, func() error {
		bench := bench{engine: e, ctx: ctx}
		for i := range ops {
			op := &ops[i]
			op.Output, op.Err = bench.do(op)
		}
		return nil
	})
}

// newHeader returns the header of a new ciphertext.
func newHeader(h hsm.WrapHeader) *envelope.Header {
	header := &envelope.Header{Suite: byte(alg.AES256GCMResident), Index: h.Index, Version: h.Version}
	_, _ = rand.Read(header.Salt[:])  // never fails
	_, _ = rand.Read(header.Nonce[:]) // from the kernel, never a counter
	return header
}
