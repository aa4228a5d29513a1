package audit

import (
	"context"

	"github.com/trikey/trikey/internal/fault"
)

// Managed is a management operation that is under way.
type Managed struct {
	log   *Log
	event Event // its end
	line  []byte
}

// Begin records that a management operation is about to be done: when it returns
// without error the event is on the disk, and otherwise the operation must not be done.
// The actor is the context's, where the event names none.
func (l *Log) Begin(ctx context.Context, e Event) (*Managed, error) {
	if l == nil {
		return &Managed{}, nil
	}
	if e.Actor == "" {
		e.Actor = ActorOf(ctx)
	}
	e.Phase = Begin
	a := &appending{events: []Event{e}}
	if err := l.append(a); err != nil {
		return nil, err
	}
	e.Of, e.Phase, e.Details = a.events[0].Number, End, nil
	return &Managed{log: l, event: e}, nil
}

// End records how the operation ended: OK, or the code of its failure.
func (m *Managed) End(outcome string, details map[string]string) error {
	if m.log == nil {
		return nil
	}
	m.event.Outcome, m.event.Details = outcome, details
	a := &appending{events: []Event{m.event}, keep: true}
	err := m.log.append(a)
	if err != nil {
		m.log.cfg.Log.Error("the outcome of a management operation was not recorded", "op", m.event.Op, "outcome", outcome, "begin", m.event.Of, "error", err)
		return err
	}
	m.event, m.line = a.events[0], a.lines[0]
	return nil
}

// Receipt proves that the operation's end is recorded. It waits for a checkpoint.
func (m *Managed) Receipt(ctx context.Context) (*Receipt, error) {
	if m.log == nil || m.line == nil {
		return nil, fault.New(fault.NotFound, "nothing was recorded of this operation")
	}
	return m.log.receipt(ctx, m.event.Number, m.line)
}

// Outcome is the outcome that an error is.
func Outcome(err error) string {
	if err == nil {
		return OK
	}
	return string(fault.CodeOf(err))
}
