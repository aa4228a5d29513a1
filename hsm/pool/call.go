package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
)

// elsewhere reports whether a call that failed so may succeed at another machine.
func elsewhere(err error) bool {
	switch fault.CodeOf(err) {
	case fault.Unavailable, fault.Sealed, fault.ChipFault, fault.ModuleFault:
		return true
	case fault.Internal:
		return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
	}
	return false
}

// pick returns the less loaded of two members that are up, of those that were not tried.
func (p *Pool) pick(tried []*member) *member {
	var best *member
	var least float64
	members := *p.members.Load()
	now := p.cfg.Now()
	seen := 0
	// Two different ones: a random place to begin at, and the next that are fit.
	start := 0
	if len(members) > 1 {
		start = rand.IntN(len(members)) //nolint:gosec // which machine is no secret
	}
	for i := range members {
		m := members[(start+i)%len(members)]
		s := m.state.Load()
		if !s.up || slices.Contains(tried, m) {
			continue
		}
		if load := m.load(s, now, p.cfg.Warm); best == nil || load < least {
			best, least = m, load
		}
		if seen++; seen == 2 {
			break
		}
	}
	return best
}

// try makes a call at a member, and at others where that fails.
func (p *Pool) try(ctx context.Context, f func(m *member) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var tried []*member
	var failed error
	var until time.Time // of waiting
	for {
		m := p.pick(tried)
		if m == nil {
			if until.IsZero() {
				until = p.cfg.Now().Add(2 * p.cfg.Patience)
			}
			// A member that answers with a failure is not one to wait for.
			if failed != nil && !errors.Is(failed, fault.Unavailable) && !errors.Is(failed, fault.Sealed) {
				return failed
			}
			again, err := p.wait(ctx, until)
			if !again {
				if failed == nil {
					failed = err
				}
				return failed
			}
			tried = nil
			continue
		}
		m.calls.Add(1)
		err := f(m)
		m.calls.Add(-1)
		p.note(m, err)
		if ctx.Err() != nil || !elsewhere(err) {
			return err
		}
		failed, tried = err, append(tried, m)
	}
}

// wait waits for a member to come up, where one was just now. It reports whether that is
// so, or else why there is none.
func (p *Pool) wait(ctx context.Context, until time.Time) (again bool, why error) {
	p.mu.Lock()
	news, now, closed := p.news, p.cfg.Now(), p.closed
	left := min(p.last.Add(2*p.cfg.Patience).Sub(now), until.Sub(now))
	p.mu.Unlock()
	if closed {
		return false, errClosed
	}
	why = p.none()
	if left <= 0 || errors.Is(why, fault.Sealed) {
		return false, why
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-news:
		return true, nil
	case <-p.ctx.Done():
		return false, errClosed
	case <-ctx.Done():
		return false, ctx.Err()
	case <-t.C:
		return false, p.none()
	}
}

// none says why no member is up: that they are sealed, where all are known to be.
func (p *Pool) none() error {
	members := *p.members.Load()
	if len(members) == 0 {
		return fault.New(fault.Unavailable, "no crypto machine is a member of the pool; name some under machines")
	}
	var why []error
	sealed := 0
	for _, m := range members {
		s := m.state.Load()
		if s.up {
			return fault.New(fault.Unavailable, "every crypto machine failed the call; try again")
		}
		if errors.Is(s.why, fault.Sealed) {
			sealed++
		}
		why = append(why, s.why)
	}
	code := fault.Unavailable
	if sealed == len(members) {
		code = fault.Sealed
	}
	return fault.New(code, "no crypto machine serves: %v", errors.Join(why...))
}

// Do has a member carry out the operations.
func (p *Pool) Do(ctx context.Context, ops []hsm.Op) error {
	return p.try(ctx, func(m *member) error { return m.machine.Do(ctx, ops) })
}

// GenerateKey has a member make a key.
func (p *Pool) GenerateKey(ctx context.Context, b hsm.Binding) (made hsm.GeneratedKey, err error) {
	err = p.try(ctx, func(m *member) (err error) { made, err = m.machine.GenerateKey(ctx, b); return err })
	return made, err
}

// Status tells of a member that is up; where none is, of one that is sealed.
func (p *Pool) Status(ctx context.Context) (hsm.Status, error) {
	until := p.cfg.Now().Add(2 * p.cfg.Patience)
	for {
		if err := ctx.Err(); err != nil {
			return hsm.Status{}, err
		}
		if m := p.pick(nil); m != nil {
			return m.state.Load().status, nil
		}
		again, why := p.wait(ctx, until)
		if again {
			continue
		}
		for _, m := range *p.members.Load() {
			if s := m.state.Load(); errors.Is(why, fault.Sealed) && s.status.State != "" && s.status.State != hsm.Open {
				return s.status, nil
			}
		}
		return hsm.Status{}, why
	}
}

// imports remembers which member has the other half of an import.
type imports struct {
	mu sync.Mutex // guards at
	at map[hsm.ID]string
}

// maxImports bounds how many are remembered; those of before are found by asking.
const maxImports = 256

func (i *imports) put(id hsm.ID, address string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.at) >= maxImports {
		clear(i.at)
	}
	i.at[id] = address
}

func (i *imports) take(id hsm.ID) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	address := i.at[id]
	delete(i.at, id)
	return address
}

var errNoImports = fault.New(fault.AlgorithmNotAllowed, "import: no machine of the pool takes keys in; only the host engine does")

// BeginImport has a member make a one-time key.
func (p *Pool) BeginImport(ctx context.Context) (made hsm.ImportKey, err error) {
	err = p.try(ctx, func(m *member) (err error) {
		importer, ok := m.machine.(hsm.Importer)
		if !ok {
			return errNoImports
		}
		if made, err = importer.BeginImport(ctx); err == nil {
			p.imports.put(made.ID, m.address)
		}
		return err
	})
	return made, err
}

// FinishImport has the member that began an import finish it; where that is not known,
// each is asked.
func (p *Pool) FinishImport(ctx context.Context, id hsm.ID, blob []byte, b hsm.Binding) (made hsm.GeneratedKey, err error) {
	err = p.none()
	began := p.imports.take(id)
	for _, m := range *p.members.Load() {
		if !m.state.Load().up || began != "" && m.address != began {
			continue
		}
		importer, ok := m.machine.(hsm.Importer)
		if !ok {
			err = errNoImports
			continue
		}
		m.calls.Add(1)
		made, err = importer.FinishImport(ctx, id, blob, b)
		m.calls.Add(-1)
		if !errors.Is(err, fault.NotFound) {
			return made, err
		}
	}
	return made, err
}
