// Package audit is the record of what was done with the service: every management
// operation, every failed authentication, every operation of the data plane. It holds
// who did what to which key from where, and how that ended; never a plaintext, a
// ciphertext, a digest of either, a secret, or a value of a context.
//
// The record is an append-only Merkle log (RFC 9162, section 2.1, as
// golang.org/x/mod/sumdb/tlog computes it) of events, each a line of JSON. Its tree
// heads are signed by the machine as C2SP checkpoints (c2sp.org/tlog-checkpoint on
// c2sp.org/signed-note), and are shipped off the host: whoever keeps one of them can
// tell that the log still contains everything it did then. Verify needs nothing but
// the files and the public key's fingerprint.
//
// One goroutine writes (writer.go). It takes all events that wait, writes them, and
// brings them to the disk by one fdatasync, while those of the next round gather: a
// caller waits for about one fdatasync, however many call. Another signs
// (checkpoint.go), so that a slow chip holds nobody up.
//
// When an event cannot be written the log is blocked: management is refused, and the
// data plane too unless it is told otherwise. The log tries again each second and goes
// on by itself when there is space. A log that somebody else has touched stays blocked:
// restart the service after it was looked into.
package audit

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/trikey/trikey/internal/unixsock"
)

// Kind says which part of the service an event is of.
type Kind string

// The kinds of events.
const (
	Data    Kind = "data"    // an operation of the data plane
	Auth    Kind = "auth"    // a caller that was not let in
	Admin   Kind = "admin"   // a change over the admin API
	Console Kind = "console" // a step of a ceremony, at the machine's console
	Service Kind = "service" // the service's own: start, warm start, stop
	Self    Kind = "audit"   // the log's own: created, recovered, resumed
)

// Phases of a management operation: each is two events.
const (
	Begin = "begin" // on the disk before the operation takes effect
	End   = "end"   // with its outcome
)

// OK is the outcome of what succeeded; any other is a code of package fault.
const OK = "ok"

// Event is one line of the log.
type Event struct {
	Number    int64             `json:"n"` // from 0; the log counts
	Time      time.Time         `json:"time"`
	Kind      Kind              `json:"kind"`
	Op        string            `json:"op"`
	Phase     string            `json:"phase,omitempty"`
	Of        int64             `json:"of,omitzero"`         // End: the number of its Begin
	Actor     string            `json:"actor,omitempty"`     // an app's name, or uid:N of the local sockets
	Address   string            `json:"address,omitempty"`   // where the caller is
	Key       uint32            `json:"key,omitzero"`        // index
	Version   uint32            `json:"version,omitzero"`    //
	ToKey     uint32            `json:"to_key,omitzero"`     // of a re-encryption
	ToVersion uint32            `json:"to_version,omitzero"` //
	Items     int               `json:"items,omitzero"`      // operations that this event stands for
	Outcome   string            `json:"outcome,omitempty"`   // OK, or the code of the failure
	Details   map[string]string `json:"details,omitempty"`   // what was asked for, without secrets
}

// appendLine appends the event as the log has it, without the newline: what json.Marshal
// makes of it. Operations of the data plane, which have no details, are written without
// reflection.
func (e *Event) appendLine(dst []byte) ([]byte, error) {
	if year := e.Time.Year(); len(e.Details) > 0 || e.Time.Location() != time.UTC || year < 0 || year > 9999 {
		raw, err := json.Marshal(e, json.Deterministic(true))
		return append(dst, raw...), err
	}
	var err error
	text := func(name, value string, always bool) {
		if value != "" || always {
			var quoted error
			dst, quoted = jsontext.AppendQuote(append(dst, name...), value)
			err = errors.Join(err, quoted)
		}
	}
	number := func(name string, value int64) {
		if value != 0 {
			dst = strconv.AppendInt(append(dst, name...), value, 10)
		}
	}
	dst = strconv.AppendInt(append(dst, `{"n":`...), e.Number, 10)
	dst = append(e.Time.AppendFormat(append(dst, `,"time":"`...), time.RFC3339Nano), '"')
	text(`,"kind":`, string(e.Kind), true)
	text(`,"op":`, e.Op, true)
	text(`,"phase":`, e.Phase, false)
	number(`,"of":`, e.Of)
	text(`,"actor":`, e.Actor, false)
	text(`,"address":`, e.Address, false)
	number(`,"key":`, int64(e.Key))
	number(`,"version":`, int64(e.Version))
	number(`,"to_key":`, int64(e.ToKey))
	number(`,"to_version":`, int64(e.ToVersion))
	number(`,"items":`, int64(e.Items))
	text(`,"outcome":`, e.Outcome, false)
	return append(dst, '}'), err
}

// parseLine reads an event back.
func parseLine(line []byte) (Event, error) {
	var e Event
	err := json.Unmarshal(line, &e, json.RejectUnknownMembers(true))
	return e, err
}

type actorKey struct{}

// WithActor names who makes the calls of a context, where that is not the user at the
// other end of a local socket.
func WithActor(ctx context.Context, actor string) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

// ActorOf returns who makes the calls of a context: whom WithActor named, or the user
// at the other end of the local socket, or the service itself.
func ActorOf(ctx context.Context) string {
	if a, ok := ctx.Value(actorKey{}).(string); ok {
		return a
	}
	if uid, ok := unixsock.PeerUID(ctx); ok {
		return fmt.Sprintf("uid:%d", uid)
	}
	return "service"
}
