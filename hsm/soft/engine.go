// Package soft is the host engine: a machine that computes on the host's
// processor with keys that the chip guards.
//
// The root key is nowhere in the process while the machine is open: a copy
// sealed by the chip is kept, and the key that wraps business keys, derived from
// the root, is an object inside the chip that cannot be extracted. A business key is
// unwrapped by the chip when it is first used and then stays, like the message
// keys derived from it, in protected memory (internal/secret), as many as the
// configured number. A cipher is built from such a page for one call and erased
// at its end, because a cipher keeps its key on the ordinary heap.
package soft

import (
	"context"
	"sync"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Config is what an engine needs.
type Config struct {
	Chip   hsm.Chip
	Region string // the only region whose keys the engine serves

	// Keys is how many business keys are kept unwrapped, 16,384 when zero;
	// MessageKeys how many derived keys, 32,768 when zero. Each takes 32 bytes of
	// locked memory.
	Keys, MessageKeys int

	Now func() time.Time // time.Now when nil
}

// Engine is a machine in this process.
type Engine struct {
	cfg Config

	mu   sync.RWMutex // held for reading through each call; guards open
	open *session     // nil while sealed
}

var _ hsm.Engine = (*Engine)(nil)

// New returns a sealed engine.
func New(cfg Config) *Engine {
	if cfg.Keys == 0 {
		cfg.Keys = 16 << 10
	}
	if cfg.MessageKeys == 0 {
		cfg.MessageKeys = 32 << 10
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Engine{cfg: cfg}
}

// Open makes the engine serve the keys of a root.
func (e *Engine) Open(ctx context.Context, root hsm.Root) error {
	if err := alg.SelfTest(); err != nil {
		return err
	}
	if root.Region != e.cfg.Region {
		return fault.New(fault.WrongRegion, "the root key is of region %q, the machine of %q", root.Region, e.cfg.Region)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open != nil {
		return fault.New(fault.MachineOpen, "the machine is open already")
	}
	s, err := newSession(ctx, e.cfg, root)
	if err != nil {
		return err
	}
	e.open = s
	return nil
}

// Seal forgets every key and derived key, and has the chip forget its own.
func (e *Engine) Seal(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open == nil {
		return nil
	}
	s := e.open
	e.open = nil
	return s.close()
}

// Close seals the engine. The chip stays its opener's.
func (e *Engine) Close() error { return e.Seal(context.Background()) }

// Status tells whether the engine is open.
func (e *Engine) Status(context.Context) (hsm.Status, error) {
	memory, err := secret.Protection()
	if err != nil {
		return hsm.Status{}, err
	}
	status := hsm.Status{
		State: hsm.Closed, Region: e.cfg.Region, Engine: "host", Chip: e.cfg.Chip.Describe(), Memory: memory,
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.open != nil {
		m := e.open.root
		status.State, status.KCV, status.Generation, status.MachineID = hsm.Open, m.KCV, m.Generation, m.MachineID
		status.Need, status.Shares = int(m.Threshold), int(m.Shares)
		status.Have = status.Need
	}
	return status, nil
}

// withSession runs f with the open session, which stays open until f returns.
func (e *Engine) withSession(ctx context.Context, f func(*session) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.open == nil {
		return fault.New(fault.Sealed, "the machine is sealed: its key cards must be given first (trikey machine unseal)")
	}
	return f(e.open)
}

// GenerateKey draws a business key and wraps it.
func (e *Engine) GenerateKey(ctx context.Context, b hsm.Binding) (hsm.GeneratedKey, error) {
	var made hsm.GeneratedKey
	err := e.withSession(ctx, func(s *session) error {
		if _, err := alg.Lookup(b.Algorithm); err != nil {
			return err
		}
		b.Region = e.cfg.Region
		key, err := secret.Random(hsm.BusinessKeySize)
		if err != nil {
			return err
		}
		defer key.Wipe()
		err = key.Use(func(k []byte) error {
			return secret.Scrub(func() (err error) { made.KCV, err = alg.KCV(k); return err })
		})
		if err != nil {
			return err
		}
		made.Wrapped, err = s.wrap(ctx, key, b)
		return err
	})
	return made, err
}

// Do carries out the operations.
func (e *Engine) Do(ctx context.Context, ops []hsm.Op) error {
	return e.withSession(ctx, func(s *session) error {
		bench := bench{session: s, ctx: ctx}
		defer bench.clear()
		for i := range ops {
			op := &ops[i]
			op.Output, op.Err = bench.do(op)
		}
		return nil
	})
}
