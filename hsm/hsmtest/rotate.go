package hsmtest

import (
	"errors"
	"sync"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
)

// Engine is an engine under test.
type Engine struct {
	// Open returns a sealed engine of the region Region.
	Open func(t *testing.T) hsm.Engine
	// Algorithms are those of the keys it serves, AES-256-GCM first; nil is all.
	Algorithms []alg.ID
	// Suite is that of the ciphertexts under a key of an algorithm; nil is the same.
	Suite func(key alg.ID) alg.ID
	// Purposes are those of the keys it makes; nil is all.
	Purposes []hsm.Purpose
	// NoStreams is set for one that refuses streams.
	NoStreams bool
}

// RunEngine runs the contract suite of engines: that of machines, and what changes
// when the root does.
func RunEngine(t *testing.T, engine Engine) {
	has := hostSuites
	if engine.Algorithms != nil {
		has.served = engine.Algorithms
	}
	if engine.Suite != nil {
		has.sealed = engine.Suite
	}
	if engine.Purposes != nil {
		has.purposes = engine.Purposes
	}
	has.streams = !engine.NoStreams
	run(t, func(t *testing.T) hsm.Machine {
		e := engine.Open(t)
		mustOpen(t, e, NewRoot(t))
		return e
	}, has)
	for name, test := range map[string]func(*testing.T, hsm.Engine, suites){
		"Rotate": testRotate, "RotateRefused": testRotateRefused, "RotateUnderLoad": testRotateUnderLoad, "OpenAgain": testOpenAgain,
	} {
		t.Run(name, func(t *testing.T) { test(t, engine.Open(t), has) })
	}
}

func mustOpen(t *testing.T, e hsm.Engine, root hsm.Root) {
	t.Helper()
	if err := e.Open(t.Context(), root); err != nil {
		t.Fatal(err)
	}
}

// next returns a root that follows another.
func next(t *testing.T, root hsm.Root) hsm.Root {
	n := NewRoot(t)
	n.MachineID, n.Generation = root.MachineID, root.Generation+1
	return n
}

func testRotate(t *testing.T, e hsm.Engine, has suites) {
	first := NewRoot(t)
	mustOpen(t, e, first)
	m := &machine{e, t, has}
	old := m.key(7, 3, m.other())
	sealed := m.must(hsm.Op{Kind: hsm.Encrypt, Key: old, Context: here, Input: []byte("hello")})
	id := hsm.RecordID{Name: "apps/a", Revision: 3}
	record := m.must(hsm.Op{Kind: hsm.SealRecord, Record: id, Input: []byte("content")})
	m.refused("rewrap without a next root", fault.RootGeneration, hsm.Op{Kind: hsm.Rewrap, Key: old, Generation: 2})

	if err := e.OpenNext(t.Context(), next(t, first)); err != nil {
		t.Fatal(err)
	}
	moved := hsm.WrappedKey(m.must(hsm.Op{Kind: hsm.Rewrap, Key: old, Generation: 2}))
	movedRecord := m.must(hsm.Op{Kind: hsm.SealRecord, Record: id, Input: []byte("content"), Generation: 2})
	oldHeader, _ := old.Header()
	h, err := moved.Header()
	if err != nil || h.Generation != 2 || h.Binding != oldHeader.Binding {
		t.Errorf("%+v, %v", h, err)
	}
	// Both serve, and each opens what the other sealed: it is the same business key.
	for _, key := range []hsm.WrappedKey{old, moved} {
		if got := m.must(hsm.Op{Kind: hsm.Decrypt, Key: key, Context: here, Input: sealed}); string(got) != "hello" {
			t.Errorf("opened as %q", got)
		}
	}
	for _, r := range [][]byte{record, movedRecord} {
		if got := m.must(hsm.Op{Kind: hsm.OpenRecord, Record: id, Input: r}); string(got) != "content" {
			t.Errorf("opened as %q", got)
		}
	}
	if h, _ := m.key(8, 1, alg.AES256GCM).Header(); h.Generation != 1 {
		t.Errorf("a key made before the promotion is of generation %d", h.Generation)
	}
	if err := e.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := m.must(hsm.Op{Kind: hsm.Decrypt, Key: moved, Context: here, Input: sealed}); string(got) != "hello" {
		t.Errorf("opened as %q", got)
	}
	if got := m.must(hsm.Op{Kind: hsm.OpenRecord, Record: id, Input: movedRecord}); string(got) != "content" {
		t.Errorf("opened as %q", got)
	}
	m.refused("a key of the old root", fault.RootGeneration, hsm.Op{Kind: hsm.Decrypt, Key: old, Context: here, Input: sealed})
	m.refused("a record of the old root", fault.RecordDamaged, hsm.Op{Kind: hsm.OpenRecord, Record: id, Input: record})
	if s, err := e.Status(t.Context()); err != nil || s.Generation != 2 {
		t.Errorf("%+v, %v", s, err)
	}
}

func testRotateRefused(t *testing.T, e hsm.Engine, has suites) {
	ctx := t.Context()
	first := NewRoot(t)
	if err := e.OpenNext(ctx, next(t, first)); !errors.Is(err, fault.Sealed) {
		t.Errorf("a next root for a sealed machine: %v", err)
	}
	mustOpen(t, e, first)
	if err := e.Promote(ctx); !errors.Is(err, fault.NoCeremony) {
		t.Errorf("nothing to promote: %v", err)
	}
	if err := e.OpenNext(ctx, NewRoot(t)); !errors.Is(err, fault.RootGeneration) {
		t.Errorf("a root of the same generation: %v", err)
	}
	m := &machine{e, t, has}
	key := m.key(1, 1, alg.AES256GCM)
	for range 2 { // a second next root takes the place of the first
		if err := e.OpenNext(ctx, next(t, first)); err != nil {
			t.Fatal(err)
		}
	}
	moved := hsm.WrappedKey(m.must(hsm.Op{Kind: hsm.Rewrap, Key: key, Generation: 2}))
	if err := errors.Join(e.DropNext(ctx), e.DropNext(ctx)); err != nil {
		t.Error(err)
	}
	m.refused("a key of a dropped root", fault.RootGeneration, hsm.Op{Kind: hsm.Encrypt, Key: moved})
	m.must(hsm.Op{Kind: hsm.Encrypt, Key: key, Input: []byte("x")})
}

// testRotateUnderLoad promotes while calls are under way: those with a key that the
// machine has never fail.
func testRotateUnderLoad(t *testing.T, e hsm.Engine, has suites) {
	root := NewRoot(t)
	mustOpen(t, e, root)
	m := &machine{e, t, has}
	key := m.key(1, 1, alg.AES256GCM)
	for range 3 {
		following := next(t, root)
		if err := e.OpenNext(t.Context(), following); err != nil {
			t.Fatal(err)
		}
		moved := hsm.WrappedKey(m.must(hsm.Op{Kind: hsm.Rewrap, Key: key, Generation: following.Generation}))
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					ops := []hsm.Op{{Kind: hsm.Encrypt, Key: moved, Input: []byte("x")}}
					if err := m.Do(t.Context(), ops); err != nil || ops[0].Err != nil {
						t.Error(err, ops[0].Err)
						return
					}
				}
			})
		}
		err := e.Promote(t.Context())
		close(stop)
		wg.Wait()
		if err != nil {
			t.Fatal(err)
		}
		root, key = following, moved
	}
}

func testOpenAgain(t *testing.T, e hsm.Engine, has suites) {
	ctx := t.Context()
	root := NewRoot(t)
	mustOpen(t, e, root)
	if err := e.Open(ctx, NewRoot(t)); !errors.Is(err, fault.MachineOpen) {
		t.Errorf("an open machine was opened again: %v", err)
	}
	m := &machine{e, t, has}
	key := m.key(1, 1, alg.AES256GCM)
	sealed := m.must(hsm.Op{Kind: hsm.Encrypt, Key: key, Input: []byte("x")})
	if err := errors.Join(e.Seal(ctx), e.Seal(ctx)); err != nil {
		t.Fatal(err)
	}
	if s, err := e.Status(ctx); err != nil || s.State == hsm.Open {
		t.Errorf("%+v, %v", s, err)
	}
	mustOpen(t, e, root)
	if got := m.must(hsm.Op{Kind: hsm.Decrypt, Key: key, Input: sealed}); string(got) != "x" {
		t.Errorf("opened as %q", got)
	}
}
