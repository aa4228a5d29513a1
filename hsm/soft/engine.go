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
	"errors"
	"sync"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/keyimport"
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
	cfg     Config
	imports *keyimport.Desk

	mu   sync.RWMutex // held for reading through each call; guards all below
	open *session     // nil while sealed
	next *session     // of the next root, while a rotation is under way
}

var (
	_ hsm.Engine   = (*Engine)(nil)
	_ hsm.Importer = (*Engine)(nil)
)

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
	return &Engine{cfg: cfg, imports: keyimport.New(cfg.Now)}
}

// Open makes the engine serve the keys of a root.
func (e *Engine) Open(ctx context.Context, root hsm.Root) error {
	s, err := e.prepare(ctx, root)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open != nil {
		return errors.Join(fault.New(fault.MachineOpen, "the machine is open already"), s.close())
	}
	e.open = s
	return nil
}

// prepare makes a session of a root, while the engine goes on serving.
func (e *Engine) prepare(ctx context.Context, root hsm.Root) (*session, error) {
	if err := alg.SelfTest(); err != nil {
		return nil, err
	}
	if root.Region != e.cfg.Region {
		return nil, fault.New(fault.WrongRegion, "the root key is of region %q, the machine of %q", root.Region, e.cfg.Region)
	}
	return newSession(ctx, e.cfg, root)
}

// OpenNext takes the next generation's root.
func (e *Engine) OpenNext(ctx context.Context, root hsm.Root) error {
	s, err := e.prepare(ctx, root)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.open == nil:
		return errors.Join(errSealed, s.close())
	case root.Generation != e.open.root.Generation+1:
		return errors.Join(fault.New(fault.RootGeneration, "root generation %d does not follow the machine's %d",
			root.Generation, e.open.root.Generation), s.close())
	}
	before := e.next
	e.next = s
	return closeSession(before)
}

// Promote puts the next root in the place of the machine's own. Calls under way with
// the old one have ended when it returns.
func (e *Engine) Promote(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.next == nil {
		return fault.New(fault.NoCeremony, "no rotation of the root key is under way")
	}
	before := e.open
	e.open, e.next = e.next, nil
	return closeSession(before)
}

// DropNext forgets the next root.
func (e *Engine) DropNext(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := e.next
	e.next = nil
	return closeSession(next)
}

// Seal forgets every key and derived key, and has the chip forget its own.
func (e *Engine) Seal(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	open, next := e.open, e.next
	e.open, e.next = nil, nil
	e.imports.Clear()
	return errors.Join(closeSession(open), closeSession(next))
}

func closeSession(s *session) error {
	if s == nil {
		return nil
	}
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
		status.RootID, status.SplitID = m.RootID, m.SplitID
		status.Need, status.Shares = int(m.Threshold), int(m.Shares)
		status.Have = status.Need
	}
	return status, nil
}

var errSealed = fault.New(fault.Sealed, "the machine is sealed: its key cards must be given first (trikey machine unseal)")

// serve runs f while the engine is open, and keeps it open until f returns.
func (e *Engine) serve(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.open == nil {
		return errSealed
	}
	return f()
}

// at returns the session of a root's generation; 0 is the machine's own. The caller
// is inside serve.
func (e *Engine) at(generation uint32) (*session, error) {
	switch {
	case generation == 0 || generation == e.open.root.Generation:
		return e.open, nil
	case e.next != nil && generation == e.next.root.Generation:
		return e.next, nil
	}
	return nil, fault.New(fault.RootGeneration, "it is of generation %d of the root key, the machine is at %d", generation, e.open.root.Generation)
}

// GenerateKey draws a business key and wraps it.
func (e *Engine) GenerateKey(ctx context.Context, b hsm.Binding) (hsm.GeneratedKey, error) {
	var made hsm.GeneratedKey
	err := e.serve(ctx, func() error {
		if err := b.Purpose.Check(b.Algorithm); err != nil {
			return err
		}
		key, err := secret.Random(hsm.BusinessKeySize)
		if err != nil {
			return err
		}
		defer key.Wipe()
		made, err = e.take(ctx, key, b)
		return err
	})
	return made, err
}

// take wraps a business key for the binding, in the machine's own region.
func (e *Engine) take(ctx context.Context, key *secret.Bytes, b hsm.Binding) (made hsm.GeneratedKey, err error) {
	b.Region = e.cfg.Region
	err = key.Use(func(k []byte) error {
		return secret.Scrub(func() (err error) { made.KCV, err = alg.KCV(k); return err })
	})
	if err == nil {
		made.Wrapped, err = e.open.wrap(ctx, key, b)
	}
	return made, err
}

// Do carries out the operations.
func (e *Engine) Do(ctx context.Context, ops []hsm.Op) error {
	return e.serve(ctx, func() error {
		bench := bench{engine: e, ctx: ctx}
		defer bench.clear()
		for i := range ops {
			op := &ops[i]
			op.Output, op.Err = bench.do(op)
		}
		return nil
	})
}
