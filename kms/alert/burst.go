package alert

import (
	"fmt"
	"net/netip"
	"time"
)

// DefaultBurst is how many failed authentications in a minute are an alert.
const DefaultBurst = 30

// burst counts failures in the minute under way.
type burst struct {
	limit  int // 0: no alert
	minute time.Time
	count  int
}

// SetBurst says how many failed authentications in a minute, of all callers together,
// are an alert; 0 for none.
func (a *Alerts) SetBurst(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.burst.limit = n
}

// Failure counts a failed authentication.
func (a *Alerts) Failure(from netip.Addr) {
	if a == nil {
		return
	}
	minute := a.cfg.Now().Truncate(time.Minute)
	a.mu.Lock()
	b := &a.burst
	if !b.minute.Equal(minute) {
		b.minute, b.count = minute, 0
	}
	b.count++
	reached, limit := b.count == b.limit, b.limit
	a.mu.Unlock()
	if reached {
		a.Raise(Alert{Kind: FailureBurst, Text: fmt.Sprintf("%d authentications failed within a minute, the last from %s", limit, from)})
	}
}
