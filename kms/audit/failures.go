package audit

import (
	"sync"
	"time"
)

// failures keeps strangers from filling the disk: of many failed authentications that
// are alike the first is recorded at once, and those that follow as one event with
// their number.
type failures struct {
	mu   sync.Mutex
	seen map[failure]*repeated
}

// failure is what makes failed authentications alike.
type failure struct{ op, actor, address, outcome string }

type repeated struct {
	first time.Time
	more  int
}

// gathering is how long failures that are alike are counted together.
const gathering = 5 * time.Second

// maxAlike bounds how many different ones are counted; beyond that addresses are left
// out.
const maxAlike = 10_000

// Failure records that a caller was not let in.
func (l *Log) Failure(e Event) error {
	if l == nil {
		return nil
	}
	f := &l.failures
	e.Kind, e.Items = Auth, 1
	key := failure{e.Op, e.Actor, e.Address, e.Outcome}
	f.mu.Lock()
	if f.seen == nil {
		f.seen = map[failure]*repeated{}
	}
	r := f.seen[key]
	if r == nil && len(f.seen) >= maxAlike {
		key.address, key.actor = "many", ""
		e.Address, e.Actor = key.address, ""
		r = f.seen[key]
	}
	if r != nil {
		r.more++
		f.mu.Unlock()
		return nil
	}
	f.seen[key] = &repeated{first: time.Now()}
	f.mu.Unlock()
	_, err := l.Record(e)
	if err != nil && l.cfg.OnFailure == Open {
		l.lost.Add(1)
		return nil
	}
	return err
}

// flush records the counts whose time is over, or all of them.
func (f *failures) flush(l *Log, all bool) {
	var events []Event
	f.mu.Lock()
	for key, r := range f.seen {
		if !all && time.Since(r.first) < gathering {
			continue
		}
		if r.more > 0 {
			events = append(events, Event{
				Kind: Auth, Op: key.op, Actor: key.actor, Address: key.address, Outcome: key.outcome, Items: r.more,
				Details: map[string]string{"repeated": "since " + r.first.UTC().Format(time.RFC3339)},
			})
		}
		delete(f.seen, key)
	}
	f.mu.Unlock()
	if len(events) == 0 {
		return
	}
	a := &appending{events: events}
	l.stamp(a)
	select {
	case l.queue <- a: // from the writing goroutine too, which must not wait for itself
	default:
		l.lost.Add(int64(len(events)))
	}
}
