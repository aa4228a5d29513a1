// Package limit bounds how much callers may ask for: token buckets for each app, each
// address and each key, in single operations, so that a batch of a thousand counts a
// thousand. Buckets are of this process: n nodes behind a balancer allow n times as
// much. Without a rate nothing is counted.
package limit

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/trikey/trikey/internal/fault"
)

// Rates are those that hold where an app has none of its own.
type Rates struct {
	App     Rate // of each app
	Address Rate // of each address, before it is known who calls: see Network
	Key     Rate // of each key, all callers together
}

// Config is what limits need.
type Config struct {
	Rates Rates
	Now   func() time.Time // time.Now when nil
	Most  int              // buckets of each kind that are kept; 65,536 when zero
}

// Limits are the buckets of a process. The methods of nil Limits allow everything.
type Limits struct {
	now       func() time.Time
	rates     atomic.Pointer[Rates]
	apps      *buckets[string]
	addresses *buckets[netip.Addr]
	keys      *buckets[uint32]

	refusedApps, refusedAddresses, refusedKeys atomic.Uint64
}

// New returns limits with full buckets.
func New(cfg Config) *Limits {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Most == 0 {
		cfg.Most = 1 << 16
	}
	l := &Limits{
		now: cfg.Now, apps: newBuckets[string](cfg.Most), addresses: newBuckets[netip.Addr](cfg.Most), keys: newBuckets[uint32](cfg.Most),
	}
	l.Set(cfg.Rates)
	return l
}

// Set changes the rates. What is in the buckets stays.
func (l *Limits) Set(r Rates) { l.rates.Store(&r) }

// Network is what of an address is counted as one caller: an IPv4 address; of IPv6 the
// first 64 bits, because whoever has one address there has all of those (RFC 4291,
// section 2.5.4).
func Network(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if !addr.Is6() {
		return addr
	}
	p, err := addr.Prefix(64)
	if err != nil {
		return addr
	}
	return p.Addr()
}

// Arrive counts a request from an address, before it is known whose it is.
func (l *Limits) Arrive(from netip.Addr) error {
	if l == nil {
		return nil
	}
	r := l.rates.Load().Address
	if r.Items == 0 {
		return nil
	}
	if wait, ok := l.addresses.take(Network(from), r, 1, l.now()); !ok {
		l.refusedAddresses.Add(1)
		return fault.Later(fault.RateLimited, wait, "more comes from the address %s than %s; wait, or have limits.address raised", from.Unmap(), r)
	}
	return nil
}

// Take counts operations of an app; own is the app's rate, nil for everybody's. The
// request itself has been counted for its address.
func (l *Limits) Take(app string, own *Rate, from netip.Addr, items int) error {
	if l == nil || items <= 0 {
		return nil
	}
	rates := l.rates.Load()
	r := rates.App
	if own != nil {
		r = *own
	}
	if r.Items != 0 {
		if wait, ok := l.apps.take(app, r, items, l.now()); !ok {
			l.refusedApps.Add(1)
			return fault.Later(fault.RateLimited, wait, "the app %s asks for more than %s; wait, or have it raised (trikey app limit %s …)", app, r, app)
		}
	}
	if r := rates.Address; r.Items != 0 && items > 1 && from.IsValid() {
		if wait, ok := l.addresses.take(Network(from), r, items-1, l.now()); !ok {
			l.refusedAddresses.Add(1)
			return fault.Later(fault.RateLimited, wait, "more comes from the address %s than %s; wait, or have limits.address raised", from, r)
		}
	}
	return nil
}

// TakeKey counts one operation with a key.
func (l *Limits) TakeKey(index uint32) error {
	if l == nil {
		return nil
	}
	r := l.rates.Load().Key
	if r.Items == 0 {
		return nil
	}
	if wait, ok := l.keys.take(index, r, 1, l.now()); !ok {
		l.refusedKeys.Add(1)
		return fault.Later(fault.RateLimited, wait, "key %d is asked for more than %s; wait, or have limits.key raised", index, r)
	}
	return nil
}

// Refused is how often something was refused, by what it was refused for.
type Refused struct{ App, Address, Key uint64 }

// Refused returns the counts since the start.
func (l *Limits) Refused() Refused {
	if l == nil {
		return Refused{}
	}
	return Refused{l.refusedApps.Load(), l.refusedAddresses.Load(), l.refusedKeys.Load()}
}
