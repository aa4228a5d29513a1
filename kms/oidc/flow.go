package oidc

import (
	"context"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/limit"
)

// Bounds of the flows that have begun. An address drops its own oldest first, so that one
// alone cannot drop another's.
const (
	flowLife   = 10 * time.Minute
	maxFlows   = 1000
	maxFlowsAt = 8
)

// flow is one that has begun.
type flow struct {
	nonce, verifier, redirect string
	from                      netip.Addr
	begun                     time.Time
}

type flows struct {
	now func() time.Time

	mu  sync.Mutex // guards all
	all map[string]flow
}

func (f *flows) put(state string, next flow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil {
		f.all = map[string]flow{}
	}
	var oldest, own string
	at := 0
	for s, other := range f.all {
		if next.begun.Sub(other.begun) >= flowLife {
			delete(f.all, s)
			continue
		}
		if oldest == "" || other.begun.Before(f.all[oldest].begun) {
			oldest = s
		}
		if other.from == next.from {
			if at++; own == "" || other.begun.Before(f.all[own].begun) {
				own = s
			}
		}
	}
	if at >= maxFlowsAt {
		delete(f.all, own)
	} else if len(f.all) >= maxFlows {
		delete(f.all, oldest)
	}
	f.all[state] = next
}

// take returns a flow, which is over by that.
func (f *flows) take(state string) (flow, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	one, ok := f.all[state]
	delete(f.all, state)
	return one, ok && f.now().Sub(one.begun) < flowLife
}

// Begin returns where the person is to go, and the flow's state. redirect is where the
// person's program listens.
func (c *Client) Begin(ctx context.Context, redirect string, from netip.Addr) (where, state string, err error) {
	if err := checkRedirect(redirect); err != nil {
		return "", "", err
	}
	p, err := c.discover(ctx)
	if err != nil {
		return "", "", err
	}
	// 256 random bits each, as of a verifier.
	state = oauth2.GenerateVerifier()
	f := flow{nonce: oauth2.GenerateVerifier(), verifier: oauth2.GenerateVerifier(), redirect: redirect, from: limit.Network(from), begun: c.cfg.Now()}
	c.flows.put(state, f)
	return c.config(p, redirect).AuthCodeURL(state, oidc.Nonce(f.nonce), oauth2.S256ChallengeOption(f.verifier)), state, nil
}

// Callback is the path at which the person's program listens.
const Callback = "/callback"

// checkRedirect takes http://127.0.0.1:PORT/callback and the same at [::1]: the code must
// not leave the person's computer (RFC 8252, section 7.3). A name is not taken, localhost
// included (section 8.3).
func checkRedirect(text string) error {
	u, err := url.Parse(text)
	if err == nil && u.Scheme == "http" {
		at, err := netip.ParseAddrPort(u.Host)
		if err == nil && at.Addr().IsLoopback() && at.Port() != 0 && text == "http://"+at.String()+Callback {
			return nil
		}
	}
	return fault.New(fault.BadRequest, "redirect_uri: is not http://127.0.0.1:PORT%s, at the person's own computer", Callback)
}
