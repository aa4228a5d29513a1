package api

import (
	"net/http"
	"strconv"

	"github.com/go-chi/chi/v5"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/audit"
	"github.com/trikey/trikey/kms/auth"
)

// recorder is a ResponseWriter that records its request before the first byte of the
// answer goes out. Where that fails nothing goes out by it.
type recorder struct {
	http.ResponseWriter
	record func() error
	done   bool
	failed error
}

func (w *recorder) before() bool {
	if !w.done {
		w.done = true
		w.failed = w.record()
	}
	return w.failed == nil
}

// WriteHeader is that of http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	if w.before() {
		w.ResponseWriter.WriteHeader(status)
	}
}

// Write is that of http.ResponseWriter.
func (w *recorder) Write(b []byte) (int, error) {
	if !w.before() {
		return 0, w.failed
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// recordEnd records how a stream ended, whose beginning is recorded with its key.
func (s *server) recordEnd(op string, r *request, err error) error {
	event := audit.Event{Kind: audit.Data, Op: op, Phase: audit.End, Actor: r.caller.Name, Address: r.from.String()}
	s.describe(&r.calls[0]).fill(&event)
	event.Items, event.Outcome = r.items, audit.Outcome(err)
	return s.cfg.Audit.Operation(event)
}

// group is what the operations of one event have in common.
type group struct {
	key, version, toKey, toVersion uint32
	outcome                        string
}

// record records what a request has done. err is that of the request as a whole.
func (s *server) record(op string, r *request, err error) error {
	return s.cfg.Audit.Operation(s.events(op, r, err)...)
}

// events are one for each key, version and outcome.
func (s *server) events(op string, r *request, err error) []audit.Event {
	event := audit.Event{Kind: audit.Data, Op: op, Address: r.from.String()}
	if r.caller != nil {
		event.Actor = r.caller.Name
	}
	switch {
	case len(r.calls) == 0:
		if r.ref != "" || chi.URLParam(r.Request, "key") != "" {
			event.Key = s.describe(&kms.Call{Key: r.key()}).key
		}
		event.Items, event.Outcome, event.Details = r.items, audit.Outcome(err), r.details
		return []audit.Event{event}
	case len(r.calls) == 1:
		s.describe(&r.calls[0]).fill(&event)
		event.Items = 1
		return []audit.Event{event}
	}
	at := make(map[group]int, 4)
	var events []audit.Event
	for i := range r.calls {
		g := s.describe(&r.calls[i])
		j, known := at[g]
		if !known {
			j = len(events)
			at[g] = j
			events = append(events, event)
			g.fill(&events[j])
		}
		events[j].Items++
	}
	return events
}

func (g group) fill(e *audit.Event) {
	e.Key, e.Version, e.ToKey, e.ToVersion, e.Outcome = g.key, g.version, g.toKey, g.toVersion, g.outcome
}

// describe names the keys of a call. What a caller wrote where the name of a key belongs
// is never repeated: it may be anything.
func (s *server) describe(c *kms.Call) group {
	g := group{key: c.KeyIndex, version: c.KeyVersion, outcome: audit.Outcome(c.Err)}
	if c.FromIndex != 0 {
		g.key, g.version = c.FromIndex, c.FromVersion
		if c.KeyIndex != c.FromIndex || c.KeyVersion != c.FromVersion {
			g.toKey, g.toVersion = c.KeyIndex, c.KeyVersion
		}
	}
	if g.key == 0 && c.Key != "" {
		if n, err := strconv.ParseUint(c.Key, 10, 32); err == nil {
			g.key = uint32(n)
		} else if k, err := s.cfg.Service.FindKey(c.Key); err == nil {
			g.key = k.Index
		}
	}
	return g
}

// recordFailure records that a caller was not let in, and returns why. That the machine
// is sealed is nobody's failure to authenticate.
func (s *server) recordFailure(op string, r *request, err error) error {
	code := fault.CodeOf(err)
	if code == fault.Sealed || code == fault.Unavailable {
		return err
	}
	e := audit.Event{Op: op, Address: r.from.String(), Outcome: string(code)}
	if r.caller != nil {
		e.Actor = r.caller.Name
	} else if name := claimed(r.Request); auth.IsAppKey(name) {
		e.Actor = name
	}
	if failed := s.cfg.Audit.Failure(e); failed != nil {
		return failed
	}
	return err
}
