// Package alert tells people what looks like an attack or needs a hand: in the log, in
// the metrics, and by a webhook. An alert names apps, addresses and numbers; never a
// secret, a key's name, a conversation, or anything of a message.
//
// What is alike is told once in a quarter of an hour. One goroutine delivers to the
// webhook, from a bounded queue: when nobody takes alerts the oldest wait, new ones are
// dropped and counted, and no caller is held up.
package alert

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"sync"
	"time"

	"github.com/trikey/trikey/internal/fault"
)

// Kind is what an alert is about.
type Kind string

// The kinds of alerts.
const (
	FailureBurst   Kind = "failure_burst"   // many failed authentications in a minute
	LockedOut      Kind = "locked_out"      // an AppKey, or an address, is refused for a while
	NewAddress     Kind = "new_address"     // an app calls from where it never has
	UnusualRate    Kind = "unusual_rate"    // an app asks for many times what it does as a rule
	UnusualHour    Kind = "unusual_hour"    // an app calls at an hour of the week when it never has
	BudgetExceeded Kind = "budget_exceeded" // an app's decryption was suspended
	AuditBlocked   Kind = "audit_blocked"   // nothing can be recorded
	ReloadFailed   Kind = "reload_failed"   // a changed configuration was not taken
)

// Kinds are all of them.
var Kinds = []Kind{FailureBurst, LockedOut, NewAddress, UnusualRate, UnusualHour, BudgetExceeded, AuditBlocked, ReloadFailed}

// Alert is one thing to tell.
type Alert struct {
	Kind    Kind      `json:"kind"`
	Time    time.Time `json:"time"`
	App     string    `json:"app,omitempty"`
	Address string    `json:"address,omitempty"`
	Text    string    `json:"text"` // for people
}

// like is what makes alerts alike.
type like struct {
	kind         Kind
	app, address string
}

const (
	quiet       = 15 * time.Minute // between alerts that are alike
	maxQuiet    = 4096             // different ones that are remembered
	queueLength = 256
)

// Config is what alerts need.
type Config struct {
	Log *slog.Logger     // slog.Default when nil
	Now func() time.Time // time.Now when nil

	// Again is how long to wait before a delivery that failed is tried again, for the
	// n-th time; nil doubles from a second to five minutes.
	Again func(n int) time.Duration
}

// Alerts takes alerts and delivers them. The methods of nil Alerts do nothing. Close ends
// its goroutine.
type Alerts struct {
	cfg   Config
	queue chan message
	stop  context.CancelFunc
	done  chan struct{}

	mu       sync.Mutex // guards all below
	told     map[like]time.Time
	swept    time.Time // when what is over was last taken out of told
	counts   map[Kind]uint64
	dropped  uint64
	failures uint64
	webhook  *Webhook
	burst    burst
}

// New returns alerts that go to the log and the metrics only, until SetWebhook.
func New(cfg Config) *Alerts {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Again == nil {
		cfg.Again = backoff
	}
	ctx, stop := context.WithCancel(context.Background())
	a := &Alerts{
		cfg: cfg, queue: make(chan message, queueLength), stop: stop, done: make(chan struct{}),
		told: map[like]time.Time{}, counts: map[Kind]uint64{},
	}
	a.burst.limit = DefaultBurst
	go a.deliver(ctx)
	return a
}

func backoff(n int) time.Duration { return min(time.Second<<min(n, 16), 5*time.Minute) }

// SetWebhook says where alerts go from now on, nil for nowhere. The webhook before is
// closed.
func (a *Alerts) SetWebhook(w *Webhook) {
	a.mu.Lock()
	before := a.webhook
	a.webhook = w
	a.mu.Unlock()
	if before != nil {
		before.Close()
	}
}

// Raise tells an alert, unless one like it was told a short while ago.
func (a *Alerts) Raise(alert Alert) {
	if a == nil {
		return
	}
	now := a.cfg.Now()
	alert.Time = now.UTC()
	a.mu.Lock()
	defer a.mu.Unlock()
	key := like{alert.Kind, alert.App, alert.Address}
	if last, ok := a.told[key]; ok && now.Sub(last) < quiet {
		return
	}
	if len(a.told) >= maxQuiet && now.Sub(a.swept) >= time.Minute {
		a.swept = now
		for k, last := range a.told {
			if now.Sub(last) >= quiet {
				delete(a.told, k)
			}
		}
	}
	if len(a.told) >= maxQuiet { // so many at once are one matter
		key = like{kind: alert.Kind}
		if last, ok := a.told[key]; ok && now.Sub(last) < quiet {
			return
		}
	}
	a.told[key] = now
	a.counts[alert.Kind]++
	a.cfg.Log.Warn("alert: "+alert.Text, "kind", string(alert.Kind), "app", alert.App, "address", alert.Address)
	if a.webhook == nil {
		return
	}
	select {
	case a.queue <- newMessage(alert):
	default:
		a.dropped++
	}
}

// message is an alert with the id under which every try delivers it.
type message struct {
	id    string
	alert Alert
}

func newMessage(alert Alert) message {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	return message{"msg_" + hex.EncodeToString(raw[:]), alert}
}

// maxTries bounds how often one alert is tried: with the doubling pauses, for some four
// hours.
const maxTries = 55

// deliver brings what is in the queue to the webhook, one after the other.
func (a *Alerts) deliver(ctx context.Context) {
	defer close(a.done)
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-a.queue:
			a.deliverOne(ctx, m)
		}
	}
}

func (a *Alerts) deliverOne(ctx context.Context, m message) {
	for n := range maxTries {
		a.mu.Lock()
		w := a.webhook
		a.mu.Unlock()
		if w == nil {
			return
		}
		err := w.post(ctx, m, a.cfg.Now())
		if err == nil || ctx.Err() != nil {
			return
		}
		a.mu.Lock()
		a.failures++
		a.mu.Unlock()
		if n == 0 {
			a.cfg.Log.Error("an alert was not delivered; it is tried again", "webhook", w.Name(), "kind", string(m.alert.Kind), "error", err)
		}
		t := time.NewTimer(a.cfg.Again(n))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
	a.mu.Lock()
	a.dropped++
	a.mu.Unlock()
}

// Stats is what became of alerts.
type Stats struct {
	Raised   map[Kind]uint64
	Dropped  uint64 // never delivered to the webhook
	Failures uint64 // tries that failed
	Waiting  int
}

// Stats returns the counts since the start.
func (a *Alerts) Stats() Stats {
	if a == nil {
		return Stats{}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Stats{Raised: map[Kind]uint64{}, Dropped: a.dropped, Failures: a.failures, Waiting: len(a.queue)}
	for k, n := range a.counts {
		s.Raised[k] = n
	}
	return s
}

// Close gives up what was not delivered, and waits for the goroutine.
func (a *Alerts) Close() {
	if a == nil {
		return
	}
	a.stop()
	<-a.done
	a.SetWebhook(nil)
}

// Audit is told how the audit log is doing.
func (a *Alerts) Audit(err error) {
	if fault.CodeOf(err) == fault.AuditBlocked {
		a.Raise(Alert{Kind: AuditBlocked, Text: "nothing can be recorded in the audit log: free its disk, or look who has touched it"})
	}
}
