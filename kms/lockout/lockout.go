// Package lockout stops guessing: after five failed authentications within a quarter of
// an hour the AppKey is refused from that address for a quarter of an hour, whatever it
// comes with (NIST SP 800-63B, section 5.2.2). From its other addresses the app goes on:
// strangers cannot lock it out. An AppKey that does not exist is treated the same, so
// that nothing can be learnt about which do.
//
// An address that tries one AppKey after the other is refused as a whole, but for those
// that have got in from there before: five different AppKeys that failed are enough.
//
// What is counted is of this process, in bounded memory: what happened longest ago makes
// room. IPv6 addresses count by their network (limit.Network), so that an attacker does
// not have more of them than of networks.
package lockout

import (
	"hash/maphash"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/limit"
)

// Config is when callers are locked out.
type Config struct {
	Failures int              // how many; five when zero
	Window   time.Duration    // within which time, and for how long; a quarter of an hour when zero
	Now      func() time.Time // time.Now when nil
	Most     int              // pairs of AppKey and address that are remembered; 65,536 when zero
}

// Lockout counts failed authentications. The methods of a nil Lockout lock nobody out.
type Lockout struct {
	cfg    Config
	seed   maphash.Seed
	shards [shards]shard
	locks  atomic.Uint64
}

const shards = 64

type shard struct {
	mu  sync.Mutex
	all *simplelru.LRU[pair, *state] // guarded by mu
}

// pair is an AppKey at an address; without the AppKey, the address as a whole.
type pair struct {
	appKey string
	from   netip.Addr
}

type state struct {
	failures int
	until    time.Time // the end of the window, or of the lock
	locked   bool
	good     bool // the AppKey has got in from there
}

// New returns a lockout that has seen nothing.
func New(cfg Config) *Lockout {
	if cfg.Failures == 0 {
		cfg.Failures = 5
	}
	if cfg.Window == 0 {
		cfg.Window = 15 * time.Minute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Most == 0 {
		cfg.Most = 1 << 16
	}
	l := &Lockout{cfg: cfg, seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].all, _ = simplelru.NewLRU[pair, *state](max(1, cfg.Most/shards), nil) // fails for sizes below 1 only
	}
	return l
}

// Check refuses an AppKey that is locked out, before it is looked whether its secret is
// right.
func (l *Lockout) Check(appKey string, from netip.Addr) error {
	if l == nil || appKey == "" {
		return nil
	}
	from = limit.Network(from)
	now := l.cfg.Now()
	wait, good := l.look(pair{appKey, from}, now)
	if wait == 0 && !good {
		wait, _ = l.look(pair{"", from}, now)
	}
	if wait > 0 {
		return fault.Later(fault.LockedOut, wait, "too many authentications failed from this address; wait, or have it unlocked (trikey app unlock)")
	}
	return nil
}

func (l *Lockout) look(p pair, now time.Time) (wait time.Duration, good bool) {
	s := l.shard(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.all.Get(p)
	if !ok {
		return 0, false
	}
	if e.locked && now.Before(e.until) {
		return e.until.Sub(now), e.good
	}
	return 0, e.good
}

func (l *Lockout) shard(p pair) *shard { return &l.shards[maphash.Comparable(l.seed, p)%shards] }

// Passed notes that an AppKey was let in.
func (l *Lockout) Passed(appKey string, from netip.Addr) {
	if l == nil || appKey == "" {
		return
	}
	p := pair{appKey, limit.Network(from)}
	s := l.shard(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.all.Get(p); ok {
		e.good, e.failures = true, 0
		return
	}
	p.appKey = strings.Clone(p.appKey)
	s.all.Add(p, &state{good: true})
}

// Failed counts a failure, and reports whether something was locked by it.
func (l *Lockout) Failed(appKey string, from netip.Addr) (locked bool) {
	if l == nil || appKey == "" {
		return false
	}
	from = limit.Network(from)
	now := l.cfg.Now()
	// The AppKey may be a part of the text that has the secret too: keep none of that.
	locked, first := l.count(pair{strings.Clone(appKey), from}, now)
	if first {
		also, _ := l.count(pair{"", from}, now)
		locked = locked || also
	}
	if locked {
		l.locks.Add(1)
	}
	return locked
}

func (l *Lockout) count(p pair, now time.Time) (locked, first bool) {
	s := l.shard(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.all.Get(p)
	if !ok {
		e = &state{}
		s.all.Add(p, e)
	}
	if e.failures == 0 || !now.Before(e.until) {
		e.failures, e.locked, e.until, first = 0, false, now.Add(l.cfg.Window), true
	}
	if e.locked { // by a call that went on at the same time
		return false, false
	}
	if e.failures++; e.failures >= l.cfg.Failures {
		e.locked, e.until = true, now.Add(l.cfg.Window)
	}
	return e.locked, first
}

// Unlock forgets the failures of an AppKey, and of the addresses where it failed.
func (l *Lockout) Unlock(appKey string) {
	if l == nil {
		return
	}
	failed := map[netip.Addr]bool{}
	l.remove(func(p pair, e *state) bool {
		if p.appKey == appKey && e.failures > 0 {
			failed[p.from] = true
			return true
		}
		return false
	})
	l.remove(func(p pair, _ *state) bool { return p.appKey == "" && failed[p.from] })
}

func (l *Lockout) remove(which func(pair, *state) bool) {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for _, p := range s.all.Keys() {
			if e, ok := s.all.Peek(p); ok && which(p, e) {
				s.all.Remove(p)
			}
		}
		s.mu.Unlock()
	}
}

// Locks returns how often something was locked since the start.
func (l *Lockout) Locks() uint64 {
	if l == nil {
		return 0
	}
	return l.locks.Load()
}

// Len returns how many pairs of AppKey and address are remembered.
func (l *Lockout) Len() (n int) {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		n += s.all.Len()
		s.mu.Unlock()
	}
	return n
}
