package activity

import (
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trikey/trikey/kms/alert"
	"github.com/trikey/trikey/kms/limit"
)

// When something is unusual.
const (
	history  = 7 * 24 * time.Hour // before an hour of the week can be unusual
	warmUp   = 60                 // looks at the rate before one can be unusual
	floor    = 1000               // items a minute that are never unusual
	smoothed = 60                 // looks over which the mean runs
)

// DefaultFactor is how many times its mean a rate must be to be unusual.
const DefaultFactor = 10

// Tracker watches the apps of a process.
type Tracker struct {
	raise  func(alert.Alert)
	factor *atomic.Int64 // of the rate; 0: never unusual

	adding sync.Mutex // held while an app is added
	apps   atomic.Pointer[map[string]*app]
}

// app is one app's activity.
type app struct {
	items atomic.Int64 // since the last look

	mu      sync.RWMutex // guards all below
	profile Profile
	dirty   bool // there is something that the store does not have
	last    time.Time
	looks   int
	mean    float64 // items a minute
}

// New returns a tracker of apps of which nothing is known. factor says how many times its
// mean a rate must be to be unusual; it may be changed at any time.
func New(raise func(alert.Alert), factor *atomic.Int64) *Tracker {
	t := &Tracker{raise: raise, factor: factor}
	t.apps.Store(&map[string]*app{})
	return t
}

func (t *Tracker) of(name string) *app {
	if a := (*t.apps.Load())[name]; a != nil {
		return a
	}
	t.adding.Lock()
	defer t.adding.Unlock()
	if a := (*t.apps.Load())[name]; a != nil {
		return a
	}
	grown := maps.Clone(*t.apps.Load())
	grown[name] = &app{}
	t.apps.Store(&grown)
	return grown[name]
}

// Seen notes a call of so many items, and reports whether it comes from an address that
// was not known: then there is something to be stored.
func (t *Tracker) Seen(name string, from netip.Addr, items int, now time.Time) (unknown bool) {
	a := t.of(name)
	a.items.Add(int64(items))
	if !from.IsValid() {
		return false
	}
	from = limit.Network(from)
	a.mu.RLock()
	known := a.profile.knows(from)
	a.mu.RUnlock()
	if known {
		return false
	}
	a.mu.Lock()
	known = a.profile.knows(from) // by now
	if !known {
		a.profile.add(from)
		if a.profile.Since.IsZero() {
			a.profile.Since = now.UTC()
		}
		a.dirty = true
	}
	a.mu.Unlock()
	if !known {
		t.raise(alert.Alert{Kind: alert.NewAddress, App: name, Address: from.String(), Text: fmt.Sprintf("the app %s calls from %s, from where it never has", name, from)})
	}
	return !known
}

// Apply takes in what the store has of an app.
func (t *Tracker) Apply(name string, p Profile) {
	a := t.of(name)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.profile.Merge(p)
}

// Look compares what each app did since the last look with what is usual for it. It is
// to be called about once a minute.
func (t *Tracker) Look(now time.Time) {
	for name, a := range *t.apps.Load() {
		a.look(t, name, now)
	}
}

func (a *app) look(t *Tracker, name string, now time.Time) {
	items := float64(a.items.Swap(0))
	a.mu.Lock()
	var found []alert.Alert
	if items > 0 && a.profile.mark(hour(now)) {
		a.dirty = true
		if now.Sub(a.profile.Since) >= history {
			found = append(found, alert.Alert{
				Kind: alert.UnusualHour, App: name, Text: fmt.Sprintf("the app %s calls on a %s at %02d h UTC, when it never has", name, now.UTC().Weekday(), now.UTC().Hour()),
			})
		}
	}
	if minutes := now.Sub(a.last).Minutes(); !a.last.IsZero() && minutes > 0 {
		rate := items / minutes
		factor := float64(t.factor.Load())
		if factor > 0 && a.looks >= warmUp && rate >= floor && rate > factor*a.mean {
			found = append(found, alert.Alert{
				Kind: alert.UnusualRate, App: name, Text: fmt.Sprintf("the app %s asks for %.0f items a minute; its mean is %.0f", name, rate, a.mean),
			})
		}
		a.looks++
		a.mean += (rate - a.mean) / float64(min(a.looks, smoothed))
	}
	a.last = now
	a.mu.Unlock()
	for _, f := range found {
		t.raise(f)
	}
}

// Dirty returns the profiles that the store does not have as they are, and takes them for
// stored. What could not be stored is given back with Again.
func (t *Tracker) Dirty() map[string]Profile {
	var all map[string]Profile
	for name, a := range *t.apps.Load() {
		a.mu.Lock()
		if a.dirty {
			if all == nil {
				all = map[string]Profile{}
			}
			all[name], a.dirty = a.profile.clone(), false
		}
		a.mu.Unlock()
	}
	return all
}

// Again has an app's profile stored once more.
func (t *Tracker) Again(name string) {
	a := t.of(name)
	a.mu.Lock()
	a.dirty = true
	a.mu.Unlock()
}
