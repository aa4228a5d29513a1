package pool

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
)

// The circuit breaker.
const (
	maxFailures = 5                // in a row, before a member that answers is left alone
	firstPause  = time.Second      // how long
	lastPause   = 30 * time.Second // the longest
)

// member is one machine of a pool. Its watcher closes it.
type member struct {
	place
	machine hsm.Machine
	ctx     context.Context // until it is no member any more
	stop    context.CancelFunc

	calls    atomic.Int64 // under way
	failures atomic.Int64 // in a row, of calls
	state    atomic.Pointer[state]
	paused   atomic.Int64 // Unix nanoseconds until when it is left alone

	pause time.Duration // the last one; the pool's mu guards it
}

// state is how a member was found.
type state struct {
	up     bool
	since  time.Time // up: since when
	why    error     // not up: why
	status hsm.Status
}

// load is how much the member has to do, beside what it can take: one that came back has
// a tenth of its share at first.
func (m *member) load(s *state, now time.Time, warm time.Duration) float64 {
	share := min(1, max(.1, float64(now.Sub(s.since))/float64(warm)))
	return float64(m.calls.Load()+1) / share
}

// resetter is a machine whose calls under way can be taken from it.
type resetter interface{ Reset() }

// watch probes a member until it is none any more, and closes it when its calls have ended.
func (p *Pool) watch(m *member) {
	ticks := time.NewTicker(p.cfg.Probe)
	defer ticks.Stop()
	for {
		p.look(m)
		select {
		case <-ticks.C:
			continue
		case <-m.ctx.Done():
		}
		break
	}
	for end := time.Now().Add(10 * time.Second); m.calls.Load() > 0 && p.ctx.Err() == nil && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if err := m.machine.Close(); err != nil {
		p.cfg.Log.Warn("a crypto machine was left with an error", "machine", m.address, "error", err)
	}
}

// look probes a member once.
func (p *Pool) look(m *member) {
	ctx, cancel := context.WithTimeout(m.ctx, p.cfg.Patience)
	defer cancel()
	status, err := m.machine.Status(ctx)
	switch {
	case m.ctx.Err() != nil:
		return
	case ctx.Err() != nil && err != nil:
		err = fault.New(fault.Unavailable, "the crypto machine %s did not answer its probe within %s", m.address, p.cfg.Patience)
		if r, ok := m.machine.(resetter); ok {
			r.Reset() // whoever waits for it is answered elsewhere
		}
	case err == nil && status.State != hsm.Open:
		err = fault.New(fault.Sealed, "the crypto machine %s is %s: its key cards must be given first (trikey machine unseal, on its host)", m.address, status.State)
	case err == nil:
		err = p.checkRoot(ctx, m, status)
	}
	if err == nil && p.cfg.Now().UnixNano() < m.paused.Load() {
		return
	}
	p.tell(m, status, err)
}

// checkRoot reports a member of another root than the pool's.
func (p *Pool) checkRoot(ctx context.Context, m *member, status hsm.Status) error {
	p.mu.Lock()
	want := p.root
	p.mu.Unlock()
	if want == status.RootID {
		return nil
	}
	if p.cfg.Root != nil {
		stored, err := p.cfg.Root(ctx)
		if err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "whether the crypto machine %s has the root of the key store is not known", m.address)
		}
		if stored != (hsm.ID{}) {
			want = stored
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if want == (hsm.ID{}) {
		if p.root == (hsm.ID{}) {
			p.root = status.RootID
		}
		want = p.root
	}
	if status.RootID != want {
		return fault.New(fault.RootMismatch, "the crypto machine %s has the root key %s (check value %s, generation %d), the pool's is %s: it gets no calls; "+
			"take it out of machines, or give it the record and the cards of that root (trikey machine adopt)",
			m.address, status.RootID, status.KCV, status.Generation, want)
	}
	p.root = want
	return nil
}

// tell takes in how a member is, and logs when that is news.
func (p *Pool) tell(m *member, status hsm.Status, why error) {
	now := p.cfg.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	before := m.state.Load()
	after := &state{up: why == nil, why: why, status: status, since: now}
	if before.up && after.up {
		after.since = before.since
	}
	m.state.Store(after)
	if after.up {
		p.last = now
	}
	known := before.why != nil && why != nil && fault.CodeOf(before.why) == fault.CodeOf(why)
	switch {
	case before.up == after.up && (after.up || known):
		return
	case after.up:
		m.failures.Store(0)
		p.cfg.Log.Info("a crypto machine serves", "machine", m.address, "kcv", status.KCV, "generation", status.Generation)
	default:
		p.cfg.Log.Warn("a crypto machine gets no calls", "machine", m.address, "error", why)
	}
	close(p.news)
	p.news = make(chan struct{})
}

// note takes in how a call to a member ended.
func (p *Pool) note(m *member, err error) {
	switch {
	case !elsewhere(err):
		if m.failures.Load() != 0 {
			m.failures.Store(0)
		}
		return
	case errors.Is(err, fault.Unavailable), errors.Is(err, fault.Sealed):
		p.tell(m, m.state.Load().status, err) // until a probe finds it up again
		return
	}
	if m.failures.Add(1) < maxFailures {
		return
	}
	p.mu.Lock()
	if m.state.Load().since.Add(10 * m.pause).Before(p.cfg.Now()) {
		m.pause = 0 // it did well for long
	}
	pause := min(lastPause, max(firstPause, 2*m.pause))
	m.pause = pause
	m.paused.Store(p.cfg.Now().Add(pause).UnixNano())
	p.mu.Unlock()
	p.tell(m, m.state.Load().status, fault.Wrap(fault.CodeOf(err), err, "the crypto machine %s failed %d calls in a row and is left alone for %s",
		m.address, maxFailures, pause))
}
