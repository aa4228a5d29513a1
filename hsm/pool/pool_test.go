package pool_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/hsm/pool"
	"github.com/trikey/trikey/hsm/soft"
	"github.com/trikey/trikey/internal/fault"
)

// openWith returns an open engine of a root, on a chip of its own.
func openWith(t testing.TB, root hsm.Root) hsm.Engine {
	t.Helper()
	e := soft.New(soft.Config{Chip: hsmtest.NewChip(t), Region: hsmtest.Region})
	if err := e.Open(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// broken is a machine that can be made to fail.
type broken struct {
	hsm.Machine
	hsm.Importer
	fault atomic.Pointer[error] // of every call and probe; nil: none
	hang  atomic.Bool           // calls and probes are not answered
	reset chan struct{}         // what waits is given up
	calls atomic.Int64
	open  atomic.Bool // Close was not called
}

func newBroken(e hsm.Engine) *broken {
	b := &broken{Machine: e, Importer: e.(hsm.Importer), reset: make(chan struct{}, 1000)}
	b.open.Store(true)
	return b
}

func (b *broken) fail(err error) { b.fault.Store(&err) }

func (b *broken) trouble(ctx context.Context) error {
	if b.hang.Load() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.reset:
			return fault.Unavailable
		}
	}
	if f := b.fault.Load(); f != nil {
		return *f
	}
	return nil
}

func (b *broken) Reset() { b.reset <- struct{}{} }

func (b *broken) Close() error { b.open.Store(false); return nil }

func (b *broken) Do(ctx context.Context, ops []hsm.Op) error {
	b.calls.Add(1)
	if err := b.trouble(ctx); err != nil {
		return err
	}
	return b.Machine.Do(ctx, ops)
}

func (b *broken) Status(ctx context.Context) (hsm.Status, error) {
	// One whose calls fail can answer a probe all the same.
	if err := b.trouble(ctx); err != nil && !errors.Is(err, fault.Internal) && !errors.Is(err, fault.ChipFault) {
		return hsm.Status{}, err
	}
	return b.Machine.Status(ctx)
}

// fleet is a pool and its members, by address.
type fleet struct {
	*pool.Pool
	t       testing.TB
	mu      sync.Mutex // guards members
	members map[string]*broken
}

func (f *fleet) member(address string) *broken {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members[address]
}

// newFleet has as many members as addresses, of one root.
func newFleet(t testing.TB, cfg pool.Config, addresses ...string) *fleet {
	t.Helper()
	root := hsmtest.NewRoot(t)
	f := &fleet{t: t, members: map[string]*broken{}}
	if cfg.Dial == nil {
		cfg.Dial = func(address, _ string) (hsm.Machine, error) {
			b := newBroken(openWith(t, root))
			f.mu.Lock()
			defer f.mu.Unlock()
			f.members[address] = b
			return b, nil
		}
	}
	cfg.Probe, cfg.Patience = 10*time.Millisecond, 500*time.Millisecond
	f.Pool = pool.New(cfg)
	t.Cleanup(func() { _ = f.Close() })
	if err := f.SetMembers(t.Context(), addresses); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fleet) ups() (n int) {
	for _, m := range f.Members() {
		if m.Up {
			n++
		}
	}
	return n
}

// until waits for what must come about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func use(ctx context.Context, m hsm.Machine) error {
	ops := []hsm.Op{{Kind: hsm.Random, Size: 16}}
	return errors.Join(m.Do(ctx, ops), ops[0].Err)
}

func TestContract(t *testing.T) {
	hsmtest.Run(t, func(t *testing.T) hsm.Machine {
		f := newFleet(t, pool.Config{}, "a", "b")
		until(t, "both up", func() bool { return f.ups() == 2 })
		return f.Pool
	})
}

// Under load each member in turn fails in each way, and no call does.
func TestFaults(t *testing.T) {
	f := newFleet(t, pool.Config{}, "a", "b", "c")
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	var calls atomic.Int64
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				if err := use(t.Context(), f); err != nil {
					t.Error(err)
					return
				}
				calls.Add(1)
			}
		})
	}
	for _, address := range []string{"a", "b", "c"} {
		b := f.member(address)
		for _, err := range []error{fault.Unavailable, fault.Sealed, fault.Internal, fault.ChipFault} {
			until(t, "all up", func() bool { return f.ups() == 3 })
			b.fail(err)
			until(t, fmt.Sprintf("%s down by %v", address, err), func() bool { return f.ups() == 2 })
			b.fault.Store(nil)
		}
		until(t, "all up", func() bool { return f.ups() == 3 })
		b.hang.Store(true)
		until(t, address+" down by not answering", func() bool { return f.ups() == 2 })
		before := calls.Load()
		until(t, "calls go on", func() bool { return calls.Load() > before+100 })
		b.hang.Store(false)
	}
	stop()
	load.Wait()
}

// Where none is left, the call says why; and sealed only where all are.
func TestNoneLeft(t *testing.T) {
	f := newFleet(t, pool.Config{}, "a", "b")
	until(t, "both up", func() bool { return f.ups() == 2 })
	f.member("a").fail(fault.Sealed)
	f.member("b").fail(fault.Sealed)
	until(t, "both down", func() bool { return f.ups() == 0 })
	if err := use(t.Context(), f); !errors.Is(err, fault.Sealed) {
		t.Errorf("all sealed: %v", err)
	}
	f.member("b").fail(fault.New(fault.Unavailable, "b is away"))
	until(t, "the reason", func() bool { return f.Members()[1].Why.Error() == "b is away" })
	if err := use(t.Context(), f); !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "b is away") {
		t.Errorf("one sealed, one away: %v", err)
	}
}

// A member of another root is named and gets no call, whichever came first.
func TestOtherRoot(t *testing.T) {
	root := hsmtest.NewRoot(t)
	members := map[string]*broken{"a": newBroken(openWith(t, root)), "b": newBroken(openWith(t, hsmtest.NewRoot(t)))}
	f := newFleet(t, pool.Config{
		Dial: func(address, _ string) (hsm.Machine, error) { return members[address], nil },
		Root: func(context.Context) (hsm.ID, error) { return root.RootID, nil },
	}, "b", "a")
	until(t, "a up", func() bool { return f.ups() == 1 })
	for range 50 {
		if err := use(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "b refused by name", func() bool {
		why := f.Members()[1].Why
		return errors.Is(why, fault.RootMismatch) && strings.Contains(why.Error(), "machine b")
	})
	if n := members["b"].calls.Load(); n > 0 {
		t.Errorf("the machine of another root had %d calls", n)
	}
}

// Members come and go under load, by list and by name, without a failed call; those that
// went are closed.
func TestSetMembers(t *testing.T) {
	var addresses atomic.Pointer[[]string]
	addresses.Store(&[]string{"10.0.0.1"})
	f := newFleet(t, pool.Config{
		Refresh: 20 * time.Millisecond,
		Resolve: func(context.Context, string) ([]string, error) { return *addresses.Load(), nil },
	}, "a", "b")
	until(t, "both up", func() bool { return f.ups() == 2 })
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	load.Go(func() {
		for ctx.Err() == nil {
			if err := use(t.Context(), f); err != nil {
				t.Error(err)
				return
			}
		}
	})
	a := f.member("a")
	if err := f.SetMembers(t.Context(), []string{"b", "c"}); err != nil {
		t.Fatal(err)
	}
	until(t, "a closed", func() bool { return !a.open.Load() })
	until(t, "c up", func() bool { return f.ups() == 2 })
	if err := f.SetMembers(t.Context(), []string{"b", "dns:machines.example:7446"}); err != nil {
		t.Fatal(err)
	}
	until(t, "the name's up", func() bool { return f.ups() == 2 && f.member("10.0.0.1:7446") != nil })
	addresses.Store(&[]string{"10.0.0.1", "10.0.0.2"})
	until(t, "the name's second", func() bool { return f.ups() == 3 && f.member("10.0.0.2:7446") != nil })
	stop()
	load.Wait()
	if err := f.SetMembers(t.Context(), []string{"dns:nonsense"}); !errors.Is(err, fault.BadConfig) || f.ups() != 3 {
		t.Errorf("an address that is none: %v, %d up", err, f.ups())
	}
}

// The less loaded member gets the call, and one that came back little at first.
func TestLoad(t *testing.T) {
	var shift atomic.Int64
	f := newFleet(t, pool.Config{Warm: time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(shift.Load())) }}, "a", "b")
	until(t, "both up", func() bool { return f.ups() == 2 })
	shift.Store(int64(2 * time.Hour))
	a, b := f.member("a"), f.member("b")
	b.fail(fault.Unavailable)
	until(t, "b down", func() bool { return f.ups() == 1 })
	b.fault.Store(nil)
	until(t, "b back", func() bool { return f.ups() == 2 })
	before := b.calls.Load()
	for range 100 {
		if err := use(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	if n := b.calls.Load() - before; n > 10 {
		t.Errorf("a member that just came back had %d of 100 calls while the other was idle", n)
	}
	shift.Store(int64(4 * time.Hour))
	before, first := b.calls.Load(), a.calls.Load()
	for range 100 {
		if err := use(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	if a.calls.Load()-first < 20 || b.calls.Load()-before < 20 {
		t.Errorf("warm members had %d and %d of 100 calls", a.calls.Load()-first, b.calls.Load()-before)
	}
}

// Every member forgets a destroyed key; one that cannot be asked is named, and a sealed
// one has nothing to forget.
func TestForget(t *testing.T) {
	f := newFleet(t, pool.Config{}, "a", "b", "c")
	until(t, "all up", func() bool { return f.ups() == 3 })
	forget := func() error {
		ops := []hsm.Op{{Kind: hsm.Forget, Key: "key"}}
		return errors.Join(f.Do(t.Context(), ops), ops[0].Err)
	}
	before := map[string]int64{}
	for _, address := range []string{"a", "b", "c"} {
		before[address] = f.member(address).calls.Load()
	}
	if err := forget(); err != nil {
		t.Fatal(err)
	}
	for address, n := range before {
		if f.member(address).calls.Load() == n {
			t.Errorf("member %s was not asked", address)
		}
	}
	f.member("b").fail(fault.Unavailable)
	if err := forget(); !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "machine b ") {
		t.Errorf("one cannot be asked: %v", err)
	}
	f.member("b").fail(fault.Sealed)
	if err := forget(); err != nil {
		t.Errorf("one is sealed: %v", err)
	}
}
