// Package pool is a Machine made of machines: it spreads calls over several of one root,
// so that the loss of any of them is no failed call.
//
// Every member is probed all the time. A call goes to the less loaded of two that are
// chosen at random among those that are up ("the power of two choices", Mitzenmacher
// 2001); one that comes back gets little at first and its full share after a while. Where
// a member does not answer, drains, is sealed or fails, the call is made again elsewhere.
// That is safe for every call: an operation has no effect at a machine but its result, and
// a key that was made and never reached anybody is no harm. The exception is the second
// half of an import, which only the machine that began it can do.
//
// A member that fails again and again is left alone for a while that doubles (a circuit
// breaker). One that does not answer its probe has its calls under way taken from it.
// Members must be of the root that the key store is of; one of another root is refused by
// name and gets no call.
package pool

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
)

// Config is what a pool needs.
type Config struct {
	// Dial returns the machine at an address. host is the name that its certificate must
	// have, where that is not in the address. The pool closes what it is given.
	Dial func(address, host string) (hsm.Machine, error)

	// Root tells which root members must have; the zero one, or a nil Root, is that of
	// the first member that is open.
	Root func(ctx context.Context) (hsm.ID, error)

	// Resolve finds the addresses of a name; the system's resolver when nil.
	Resolve func(ctx context.Context, host string) ([]string, error)

	Probe    time.Duration // how often a member is probed; 250 ms when zero
	Patience time.Duration // how long it may take to answer; 1 s when zero
	Refresh  time.Duration // how often names are resolved anew; 30 s when zero
	Warm     time.Duration // after how long a member that came back has its full share; 10 s when zero

	Now func() time.Time // time.Now when nil
	Log *slog.Logger     // slog.Default when nil
}

func (c *Config) fill() {
	for _, d := range []struct {
		value *time.Duration
		usual time.Duration
	}{{&c.Probe, 250 * time.Millisecond}, {&c.Patience, time.Second}, {&c.Refresh, 30 * time.Second}, {&c.Warm, 10 * time.Second}} {
		if *d.value == 0 {
			*d.value = d.usual
		}
	}
	if c.Resolve == nil {
		c.Resolve = net.DefaultResolver.LookupHost
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// Pool is a machine made of machines.
type Pool struct {
	cfg     Config
	ctx     context.Context // of everything that goes on by itself
	stop    context.CancelFunc
	running sync.WaitGroup
	members atomic.Pointer[[]*member]
	imports imports

	changing sync.Mutex // held while the members change; guards addresses
	address  []string   // as they were given

	mu     sync.Mutex    // guards all below
	root   hsm.ID        // that members must have; zero while none is known
	last   time.Time     // when a member was up, or members were added
	news   chan struct{} // closed, and made anew, when a member goes up or down
	closed bool
}

var (
	_ hsm.Machine  = (*Pool)(nil)
	_ hsm.Importer = (*Pool)(nil)
)

// New returns a pool without members.
func New(cfg Config) *Pool {
	cfg.fill()
	p := &Pool{cfg: cfg, news: make(chan struct{}), last: cfg.Now(), imports: imports{at: map[hsm.ID]string{}}}
	p.members.Store(&[]*member{})
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.running.Go(p.refresh)
	return p
}

// SetMembers makes the pool consist of the machines at these addresses. Those it has
// already stay as they are; one that is not among them any more finishes its calls.
//
// An address of the form dns:HOST:PORT stands for all that the name has, and follows it.
func (p *Pool) SetMembers(ctx context.Context, addresses []string) error {
	p.changing.Lock()
	defer p.changing.Unlock()
	places, err := p.resolve(ctx, addresses)
	if err != nil {
		return err
	}
	p.address = addresses
	return p.change(places)
}

// change has one member at each place. The caller holds changing.
func (p *Pool) change(places []place) error {
	before := map[place]*member{}
	for _, m := range *p.members.Load() {
		before[m.place] = m
	}
	var members, added []*member
	for _, at := range places {
		m := before[at]
		if m == nil {
			machine, err := p.cfg.Dial(at.address, at.host)
			if err != nil {
				return errors.Join(err, closeAll(added))
			}
			m = &member{place: at, machine: machine}
			m.ctx, m.stop = context.WithCancel(p.ctx)
			m.state.Store(&state{why: fault.New(fault.Unavailable, "the crypto machine %s has not answered yet", at.address)})
			added = append(added, m)
		}
		delete(before, at)
		members = append(members, m)
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return errors.Join(errClosed, closeAll(added))
	}
	p.last = p.cfg.Now()
	p.members.Store(&members)
	p.mu.Unlock()
	for _, m := range added {
		p.running.Go(func() { p.watch(m) })
	}
	for _, m := range before {
		m.stop()
		p.cfg.Log.Info("a crypto machine is no member any more", "machine", m.address)
	}
	return nil
}

// closeAll closes members that nobody watches yet.
func closeAll(members []*member) (err error) {
	for _, m := range members {
		m.stop()
		err = errors.Join(err, m.machine.Close())
	}
	return err
}

var errClosed = fault.New(fault.Sealed, "the pool of crypto machines is closed")

// Close leaves every member alone, and closes the connections.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop()
	p.running.Wait()
	p.changing.Lock()
	defer p.changing.Unlock()
	p.members.Store(&[]*member{})
	return nil
}

// Member tells how one machine of the pool is.
type Member struct {
	Address string
	Up      bool
	Why     error // why it is not
	Calls   int   // under way
	Status  hsm.Status
}

// Members tells how each machine of the pool is.
func (p *Pool) Members() []Member {
	var all []Member
	for _, m := range *p.members.Load() {
		s := m.state.Load()
		all = append(all, Member{Address: m.address, Up: s.up, Why: s.why, Calls: int(m.calls.Load()), Status: s.status})
	}
	return all
}
