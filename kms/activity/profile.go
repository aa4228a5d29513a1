// Package activity knows what is usual for an app: the addresses that it calls from, the
// hours of the week at which it calls, and how much. What is not is an alert.
//
// Addresses and hours are kept in the key store, so that a restart does not make
// everything new; rates are of this process.
package activity

import (
	"net/netip"
	"slices"
	"time"
)

// Prefix is where profiles are in the key store: activity/APP.
const Prefix = "activity/"

// maxAddresses bounds how many addresses of an app are remembered; the one that was
// first seen longest ago makes room.
const maxAddresses = 256

const hoursOfWeek = 7 * 24

// Profile is what is remembered of an app.
type Profile struct {
	Since     time.Time    `json:"since"`           // of the first call
	Addresses []netip.Addr `json:"addresses"`       // oldest first; of IPv6 the networks
	Hours     []byte       `json:"hours,omitempty"` // a bit for each hour of the week, UTC, from Sunday midnight
}

// knows reports whether the address is known.
func (p *Profile) knows(addr netip.Addr) bool { return slices.Contains(p.Addresses, addr) }

// add remembers an address.
func (p *Profile) add(addr netip.Addr) {
	if p.knows(addr) {
		return
	}
	if p.Addresses = append(p.Addresses, addr); len(p.Addresses) > maxAddresses {
		p.Addresses = p.Addresses[1:]
	}
}

// hour is the hour of the week.
func hour(t time.Time) int {
	t = t.UTC()
	return int(t.Weekday())*24 + t.Hour()
}

func (p *Profile) active(hour int) bool {
	return hour/8 < len(p.Hours) && p.Hours[hour/8]&(1<<(hour%8)) != 0
}

// mark notes an hour at which the app calls, and reports whether it was not known.
func (p *Profile) mark(hour int) bool {
	if p.active(hour) {
		return false
	}
	if len(p.Hours) != hoursOfWeek/8 {
		grown := make([]byte, hoursOfWeek/8)
		copy(grown, p.Hours)
		p.Hours = grown
	}
	p.Hours[hour/8] |= 1 << (hour % 8)
	return true
}

// Merge adds what another node has seen.
func (p *Profile) Merge(other Profile) {
	if p.Since.IsZero() || !other.Since.IsZero() && other.Since.Before(p.Since) {
		p.Since = other.Since
	}
	for _, addr := range other.Addresses {
		p.add(addr)
	}
	for h := range hoursOfWeek {
		if other.active(h) {
			p.mark(h)
		}
	}
}

// clone returns a copy that shares nothing.
func (p *Profile) clone() Profile {
	return Profile{p.Since, slices.Clone(p.Addresses), slices.Clone(p.Hours)}
}
