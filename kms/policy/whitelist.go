package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/trikey/trikey/internal/fault"
)

// Whitelist is the addresses that an app may call from. The empty whitelist
// allows none.
type Whitelist []netip.Prefix

// ParsePrefix reads a CIDR or a single address. An IPv4 address written as IPv6
// (::ffff:192.0.2.1) is the IPv4 address.
func ParsePrefix(text string) (netip.Prefix, error) {
	text = strings.TrimSpace(text)
	if addr, err := netip.ParseAddr(text); err == nil {
		if addr = addr.Unmap(); addr.Zone() == "" {
			return netip.PrefixFrom(addr, addr.BitLen()), nil
		}
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fault.New(fault.BadRequest, "address: %q is not an IP address or a CIDR like 10.1.0.0/16 or 2001:db8::/32", text)
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fault.New(fault.BadRequest, "address: %q covers more than the IPv4 addresses; write it as IPv4", text)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// Allows reports whether the address is on the list.
func (w Whitelist) Allows(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(w, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Add returns the list with p.
func (w Whitelist) Add(p netip.Prefix) Whitelist {
	if slices.Contains(w, p) {
		return w
	}
	return append(slices.Clone(w), p)
}

// Remove returns the list without p, and whether p was on it.
func (w Whitelist) Remove(p netip.Prefix) (Whitelist, bool) {
	out := slices.DeleteFunc(slices.Clone(w), func(q netip.Prefix) bool { return p == q })
	return out, len(out) < len(w)
}
