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
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/engine"
	"github.com/trikey/trikey/hsm/keyimport"
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
	*roots
}

// roots are embedded by a name of this package's, so that the field is not exported.
type roots = engine.Roots[*session]

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
	return &Engine{cfg, keyimport.New(cfg.Now), engine.NewRoots("host", cfg.Chip, cfg.Region, func(ctx context.Context, root hsm.Root) (*session, error) {
		return newSession(ctx, cfg, root)
	})}
}

// Seal forgets every key, import keys too.
func (e *Engine) Seal(ctx context.Context) error {
	err := e.roots.Seal(ctx)
	e.imports.Clear()
	return err
}

// Close seals the engine. The chip stays its opener's.
func (e *Engine) Close() error { return e.Seal(context.Background()) }

// GenerateKey draws a business key and wraps it.
func (e *Engine) GenerateKey(ctx context.Context, b hsm.Binding) (hsm.GeneratedKey, error) {
	var made hsm.GeneratedKey
	err := e.Serve(ctx, func() error {
		if err := check(b); err != nil {
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

// check reports why the engine makes no key of a binding.
func check(b hsm.Binding) error {
	if _, err := alg.Lookup(b.Algorithm); err != nil {
		return err
	}
	return b.Purpose.Check(b.Algorithm)
}

// take wraps a business key for the binding, in the machine's own region.
func (e *Engine) take(ctx context.Context, key *secret.Bytes, b hsm.Binding) (made hsm.GeneratedKey, err error) {
	b.Region = e.cfg.Region
	err = key.Use(func(k []byte) error {
		return secret.Scrub(func() (err error) { made.KCV, err = alg.KCV(k); return err })
	})
	if err != nil {
		return made, err
	}
	own, err := e.At(0)
	if err != nil {
		return made, err
	}
	made.Wrapped, err = own.wrap(ctx, key, b)
	return made, err
}

// Do carries out the operations.
func (e *Engine) Do(ctx context.Context, ops []hsm.Op) error {
	return e.Serve(ctx, func() error {
		bench := bench{engine: e, ctx: ctx}
		defer bench.clear()
		for i := range ops {
			op := &ops[i]
			op.Output, op.Err = bench.do(op)
		}
		return nil
	})
}
