package people

import (
	"net/netip"
	"sync"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/limit"
)

// After so many failures in so long a time a person is locked out at an address, for as
// long again. Elsewhere they are not: a stranger cannot lock anybody out of their office.
// Wrong codes with the right password count wherever they come from: who guesses them is no
// stranger, and has as many addresses as it likes (NIST SP 800-63B, section 5.2.2).
const (
	maxFailures = 5
	lockTime    = 15 * time.Minute
)

// maxCounted bounds how many pairs of person and address are counted; beyond that the
// oldest is forgotten, which costs who fills it a hash each.
const maxCounted = 10_000

// failures counts failed tries.
type failures struct {
	mu     sync.Mutex
	counts map[tries]*count
}

// tries are by a name at an address, whose IPv6 addresses count by their network, or without
// one from everywhere. Names that nobody can have count as one.
type tries struct {
	name string
	from netip.Addr
}

type count struct {
	n     int
	since time.Time
}

func triesOf(name string, from netip.Addr) tries {
	if !personName.MatchString(name) {
		name = ""
	}
	return tries{name, limit.Network(from)}
}

// everywhere stands for every address.
var everywhere netip.Addr

// locked says until when a person is locked out at an address, nil when they are not.
func (f *failures) locked(name string, from netip.Addr, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, at := range []netip.Addr{from, everywhere} {
		c := f.counts[triesOf(name, at)]
		if c == nil || c.n < maxFailures || now.Sub(c.since) >= lockTime {
			continue
		}
		wait := lockTime - now.Sub(c.since)
		return fault.Later(fault.LockedOut, wait, "too many failed tries; %s is locked out here for %s more", name, wait.Round(time.Second))
	}
	return nil
}

// failed counts a failure, and returns why.
func (f *failures) failed(name string, from netip.Addr, now time.Time, why error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.counts = map[tries]*count{}
	}
	key := triesOf(name, from)
	c := f.counts[key]
	if c == nil || now.Sub(c.since) >= lockTime {
		if c == nil && len(f.counts) >= maxCounted {
			f.forgetOldest()
		}
		c = &count{since: now}
		f.counts[key] = c
	}
	if c.n++; c.n == maxFailures {
		c.since = now // the lock begins with the last of them
	}
	return why
}

// forgetOldest makes room. The caller holds mu.
func (f *failures) forgetOldest() {
	var oldest tries
	var since time.Time
	for key, c := range f.counts {
		if since.IsZero() || c.since.Before(since) {
			oldest, since = key, c.since
		}
	}
	delete(f.counts, oldest)
}

func (f *failures) clear(name string, from netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.counts, triesOf(name, from))
	delete(f.counts, triesOf(name, everywhere))
}
