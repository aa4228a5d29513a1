package pool

import (
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/trikey/trikey/internal/fault"
)

// place is where a machine is.
type place struct {
	address string
	host    string // the name in its certificate; "" where it is in the address
}

// dnsScheme begins an address that is all of a name's.
const dnsScheme = "dns:"

// resolve returns the places of addresses, each once.
func (p *Pool) resolve(ctx context.Context, addresses []string) (places []place, err error) {
	for _, a := range addresses {
		name, isName := strings.CutPrefix(a, dnsScheme)
		if !isName {
			places = append(places, place{address: a})
			continue
		}
		host, port, err := net.SplitHostPort(name)
		if err != nil {
			return nil, fault.Wrap(fault.BadConfig, err, "machines: %q is not dns:HOST:PORT", a)
		}
		found, err := p.cfg.Resolve(ctx, host)
		if err != nil {
			return nil, fault.Wrap(fault.Unavailable, err, "machines: the name %s does not resolve", host)
		}
		for _, ip := range found {
			places = append(places, place{net.JoinHostPort(ip, port), host})
		}
	}
	slices.SortFunc(places, func(a, b place) int { return strings.Compare(a.address+" "+a.host, b.address+" "+b.host) })
	return slices.Compact(places), nil
}

// refresh follows names. Where one does not resolve, the members stay.
func (p *Pool) refresh() {
	ticks := time.NewTicker(p.cfg.Refresh)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
		case <-p.ctx.Done():
			return
		}
		p.changing.Lock()
		if slices.ContainsFunc(p.address, func(a string) bool { return strings.HasPrefix(a, dnsScheme) }) {
			places, err := p.resolve(p.ctx, p.address)
			if err == nil && len(places) > 0 {
				err = p.change(places)
			}
			if err != nil && p.ctx.Err() == nil {
				p.cfg.Log.Warn("the crypto machines stay as they are", "error", err)
			}
		}
		p.changing.Unlock()
	}
}
