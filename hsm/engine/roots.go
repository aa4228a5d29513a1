// Package engine has what the engines have in common: the roots that a machine has
// open and the changes between them, records of the key store, and a cache whose
// values are released.
package engine

import (
	"context"
	"errors"
	"sync"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Session is what an engine has of one root while that is open.
type Session interface {
	comparable
	// Manifest is that of the root.
	Manifest() *hsm.Manifest
	// SealedRoot is the root key, as the chip encrypts it.
	SealedRoot() []byte
	// Close forgets everything. No call is under way.
	Close() error
}

// Roots are the sessions of an engine: that of its root, and while a rotation is under
// way that of the next.
type Roots[S Session] struct {
	name   string
	chip   hsm.Chip
	region string // the only one whose keys the engine serves
	make   func(ctx context.Context, root hsm.Root) (S, error)

	mu   sync.RWMutex // held for reading through each call; guards all below
	open S            // the zero value while sealed
	next S
}

// NewRoots returns the roots of a sealed engine. The name is for Status, the region the
// only one whose roots are opened, and makeSession makes the session of a root.
func NewRoots[S Session](name string, chip hsm.Chip, region string, makeSession func(ctx context.Context, root hsm.Root) (S, error)) *Roots[S] {
	return &Roots[S]{name: name, chip: chip, region: region, make: makeSession}
}

// ErrSealed is what a sealed machine says.
var ErrSealed = fault.New(fault.Sealed, "the machine is sealed: its key cards must be given first (trikey machine unseal)")

// Open makes the engine serve the keys of a root.
func (r *Roots[S]) Open(ctx context.Context, root hsm.Root) error {
	s, err := r.prepare(ctx, root)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !none(r.open) {
		return errors.Join(fault.New(fault.MachineOpen, "the machine is open already"), s.Close())
	}
	r.open = s
	return nil
}

// prepare makes a session of a root, while the engine goes on serving.
func (r *Roots[S]) prepare(ctx context.Context, root hsm.Root) (s S, err error) {
	if err := alg.SelfTest(); err != nil {
		return s, err
	}
	if root.Region != r.region {
		return s, fault.New(fault.WrongRegion, "the root key is of region %q, the machine of %q", root.Region, r.region)
	}
	return r.make(ctx, root)
}

// OpenNext takes the next generation's root.
func (r *Roots[S]) OpenNext(ctx context.Context, root hsm.Root) error {
	s, err := r.prepare(ctx, root)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case none(r.open):
		return errors.Join(ErrSealed, s.Close())
	case root.Generation != r.open.Manifest().Generation+1:
		return errors.Join(fault.New(fault.RootGeneration, "root generation %d does not follow the machine's %d",
			root.Generation, r.open.Manifest().Generation), s.Close())
	}
	before := r.next
	r.next = s
	return closeSession(before)
}

// Promote puts the next root in the place of the machine's own. Calls under way with
// the old one have ended when it returns.
func (r *Roots[S]) Promote(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if none(r.next) {
		return fault.New(fault.NoCeremony, "no rotation of the root key is under way")
	}
	before := r.open
	var empty S
	r.open, r.next = r.next, empty
	return closeSession(before)
}

// DropNext forgets the next root.
func (r *Roots[S]) DropNext(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var empty S
	next := r.next
	r.next = empty
	return closeSession(next)
}

// Seal forgets every key and derived key, and has the chip forget its own.
func (r *Roots[S]) Seal(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var empty S
	open, next := r.open, r.next
	r.open, r.next = empty, empty
	return errors.Join(closeSession(open), closeSession(next))
}

// Close seals the engine. The chip stays its opener's.
func (r *Roots[S]) Close() error { return r.Seal(context.Background()) }

// Status tells whether the engine is open.
func (r *Roots[S]) Status(context.Context) (hsm.Status, error) {
	memory, err := secret.Protection()
	if err != nil {
		return hsm.Status{}, err
	}
	status := hsm.Status{
		State: hsm.Closed, Region: r.region, Engine: r.name, Chip: r.chip.Describe(), Memory: memory,
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !none(r.open) {
		m := r.open.Manifest()
		status.State, status.KCV, status.Generation, status.MachineID = hsm.Open, m.KCV, m.Generation, m.MachineID
		status.RootID, status.SplitID = m.RootID, m.SplitID
		status.Need, status.Shares = int(m.Threshold), int(m.Shares)
		status.Have = status.Need
	}
	return status, nil
}

// SealedRoot is that of hsm.Engine.
func (r *Roots[S]) SealedRoot(ctx context.Context) (sealed []byte, err error) {
	err = r.Serve(ctx, func() error { sealed = r.open.SealedRoot(); return nil })
	return sealed, err
}

// Serve runs f while the engine is open, and keeps it open until f returns.
func (r *Roots[S]) Serve(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if none(r.open) {
		return ErrSealed
	}
	return f()
}

// At returns the session of a root's generation; 0 is the machine's own. The caller
// is inside Serve.
func (r *Roots[S]) At(generation uint32) (S, error) {
	own := r.open.Manifest().Generation
	switch {
	case generation == 0 || generation == own:
		return r.open, nil
	case !none(r.next) && generation == r.next.Manifest().Generation:
		return r.next, nil
	}
	var empty S
	return empty, fault.New(fault.RootGeneration, "it is of generation %d of the root key, the machine is at %d", generation, own)
}

func none[S comparable](s S) bool {
	var empty S
	return s == empty
}

func closeSession[S Session](s S) error {
	if none(s) {
		return nil
	}
	return s.Close()
}

// SealRoot has the chip encrypt a root, and sees that it opens again: what the chip
// sealed is all that is left of the root.
func SealRoot(ctx context.Context, chip hsm.Chip, root hsm.Root) ([]byte, error) {
	sealed, err := chip.Seal(ctx, root.Key)
	if err != nil {
		return nil, err
	}
	again, err := chip.Open(ctx, sealed)
	if err != nil {
		return nil, err
	}
	defer again.Wipe()
	if !again.Equal(root.Key) {
		return nil, fault.New(fault.ChipFault, "the chip does not give back the root key it sealed; replace or repair it")
	}
	return sealed, nil
}
