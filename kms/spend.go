package kms

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/alert"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/budget"
	"github.com/trikey/trikey/kms/record"
)

// suspensionPrefix is where suspended apps are: suspended/APP.
const suspensionPrefix = "suspended/"

// Suspension says why an app's decryption is suspended.
type Suspension struct {
	App  string     `json:"app"`
	Why  budget.Why `json:"why"`
	Time time.Time  `json:"time"`

	revision int64 // the store's; 0 until it is there
}

// spending is what the apps of a process decrypt, and which may no longer.
type spending struct {
	meters *budget.Meters

	mu        sync.RWMutex // guards all below
	suspended map[string]Suspension
	reopened  map[string]int64 // the store's revision of the last reopening
}

func newSpending() *spending {
	return &spending{meters: budget.NewMeters(), suspended: map[string]Suspension{}, reopened: map[string]int64{}}
}

func (x *spending) apply(r record.Record) error {
	s := Suspension{revision: r.Entry}
	if err := r.Decode(&s); err != nil {
		return err
	}
	if r.Name != suspensionPrefix+s.App {
		return fault.New(fault.RecordDamaged, "record %s: is not of the app that it is named for", r.Name)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if s.revision > x.reopened[s.App] {
		x.suspended[s.App] = s
	}
	return nil
}

// remove opens an app again. What it has spent on this node is forgotten, or the next
// call would suspend it once more.
func (x *spending) remove(name string, revision int64) {
	app := strings.TrimPrefix(name, suspensionPrefix)
	x.mu.Lock()
	defer x.mu.Unlock()
	if revision <= x.reopened[app] || x.suspended[app].revision > revision {
		return
	}
	x.reopened[app] = revision
	delete(x.suspended, app)
	x.meters.Forget(app)
}

func (x *spending) of(app string) (Suspension, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s, ok := x.suspended[app]
	return s, ok
}

// begin notes a suspension, and reports whether it is a new one.
func (x *spending) begin(s Suspension) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.suspended[s.App]; ok {
		return false
	}
	x.suspended[s.App] = s
	return true
}

// spend counts a decryption that is granted, and refuses it where the app's is suspended
// or its budget spent.
func (c *Call) spend(l *loaded, caller *auth.Caller, v *Version, now time.Time) error {
	if _, ok := l.spending.of(caller.Name); ok {
		return errSuspended(caller.Name)
	}
	if caller.Budget == nil || c.spent {
		return nil
	}
	c.spent = true // each of a stream's segments comes here, and what is tried again
	b := *caller.Budget
	why := l.spending.meters.Take(caller.Name, b, budget.Opening{Conversation: c.Context[b.ConversationField()], SealedUntil: v.marks().Ended}, now)
	if why == budget.Within {
		return nil
	}
	l.suspend(Suspension{App: caller.Name, Why: why, Time: now.UTC()})
	return errSuspended(caller.Name)
}

func errSuspended(app string) error {
	return fault.New(fault.BudgetExceeded, "the app %s has decrypted more than its budget: its decryption is suspended until it is reopened (trikey app reopen %s)", app, app)
}

// suspend suspends an app's decryption: on this node at once, and on all by the store, as
// soon as the goroutine that keeps house has written it.
func (l *loaded) suspend(s Suspension) {
	if !l.spending.begin(s) {
		return
	}
	l.alert(alert.Alert{
		Kind: alert.BudgetExceeded, App: s.App, Text: fmt.Sprintf("the decryption of the app %s is suspended: its budget of %s is spent", s.App, s.Why),
	})
	l.keepSoon()
}

// keepSoon has the goroutine that keeps house write what is not in the store.
func (l *loaded) keepSoon() {
	select {
	case l.keep <- struct{}{}:
	default: // it has been called already
	}
}

// flushSuspensions writes what the store does not have.
func (s *Service) flushSuspensions(ctx context.Context, l *loaded) error {
	var failed error
	for _, x := range l.spending.unwritten() {
		content, err := record.JSON(x)
		if err == nil {
			x.revision, err = s.keep.Apply(ctx, record.Create(suspensionPrefix+x.App, content))
		}
		switch {
		case errors.Is(err, keystore.ErrConflict): // another node was faster: the watch brings it
		case err != nil:
			failed = errors.Join(failed, err)
		default:
			l.spending.written(x)
			s.cfg.Log.Warn("an app's decryption was suspended", "app", x.App, "why", string(x.Why))
		}
	}
	return failed
}

func (x *spending) unwritten() (list []Suspension) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, s := range x.suspended {
		if s.revision == 0 {
			list = append(list, s)
		}
	}
	return list
}

func (x *spending) written(s Suspension) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.suspended[s.App]; ok {
		x.suspended[s.App] = s
	}
}

// Suspended returns why an app's decryption is suspended, and whether it is.
func (s *Service) Suspended(app string) (Suspension, bool) {
	l, err := s.serving()
	if err != nil {
		return Suspension{}, false
	}
	return l.spending.of(app)
}

// Spent returns what an app has decrypted today on this node, as far as its budget counts
// that.
func (s *Service) Spent(app string) budget.Spent {
	l, err := s.serving()
	if err != nil {
		return budget.Spent{}
	}
	return l.spending.meters.Spent(app, s.now())
}

// Reopen lets an app decrypt again whose budget was spent. It is what a second person
// has to agree to.
func (s *Service) Reopen(ctx context.Context, who Actor, app string) error {
	l, err := s.serving()
	if err != nil {
		return err
	}
	if _, err := l.apps.Find(app); err != nil {
		return err
	}
	for {
		if err := s.flushSuspensions(ctx, l); err != nil {
			return err
		}
		entry := suspensionPrefix + app
		r, err := s.keep.Get(ctx, entry)
		if errors.Is(err, keystore.ErrNotFound) {
			return fault.New(fault.Conflict, "the decryption of the app %q is not suspended", app)
		}
		if err != nil {
			return err
		}
		revision, err := s.keep.Apply(ctx, record.Delete(r))
		if errors.Is(err, keystore.ErrConflict) || errors.Is(err, record.ErrRotated) {
			continue
		}
		if err != nil {
			return err
		}
		l.spending.remove(entry, revision)
		s.cfg.Log.Info("an app's decryption was reopened", "by", who, "app", app)
		return nil
	}
}
