// Package approval keeps what one person has asked for until another has approved it: dual
// control (NIST SP 800-57 part 2, section 4.8; GB/T 39786 asks for the same).
//
// A request is a sealed record with exactly what shall be done. Whoever approves it says
// which: the digest of what they have seen. Granting takes it from waiting to granted by
// compare-and-swap, before anything is done, so that it is done once at most, on whatever
// node and however often it is granted. A node that dies in between leaves it granted,
// which says that nobody knows how it ended.
package approval

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/record"
)

// Prefix is where requests are in the key store: approvals/ID.
const Prefix = "approvals/"

// MaxLife is how long a request may wait.
const MaxLife = 24 * time.Hour

// Bounds of what is kept.
const (
	maxWaiting = 1000
	kept       = 30 * 24 * time.Hour // after it has ended; the audit log has it for longer
)

// State is where a request stands.
type State string

// The states.
const (
	Waiting State = "waiting"
	Granted State = "granted" // it was begun; where that stays, how it ended is not known
	Done    State = "done"
	Failed  State = "failed" // granted, and refused by the service
	Refused State = "refused"
	Expired State = "expired"
)

// Request is what somebody has asked for.
type Request struct {
	ID      string    `json:"id"`
	What    string    `json:"what"` // will happen, in words
	Method  string    `json:"method"`
	Path    string    `json:"path"`
	Body    []byte    `json:"body,omitempty"`
	By      string    `json:"by"` // actor who asked for it
	Person  string    `json:"person,omitempty"`
	Why     string    `json:"why,omitempty"` // of a refusal
	State   State     `json:"state"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Decided time.Time `json:"decided,omitzero"`
	Decider string    `json:"decider,omitempty"` // actor
	Outcome string    `json:"outcome,omitempty"` // ok, or the code of the failure
}

// Digest names exactly what is asked for, by whom and when.
func (r Request) Digest() string {
	h := sha256.New()
	h.Write([]byte("trikey/v1/approval"))
	for _, part := range []string{r.ID, r.Method, r.Path, string(r.Body), r.By, r.Expires.UTC().Format(time.RFC3339Nano)} {
		var length [4]byte
		binary.BigEndian.PutUint32(length[:], uint32(len(part)))
		h.Write(length[:])
		h.Write([]byte(part))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// at is the request as it stands at a time.
func (r Request) at(now time.Time) Request {
	if r.State == Waiting && !now.Before(r.Expires) {
		r.State = Expired
	}
	return r
}

// Desk is where requests are handed in and decided.
type Desk struct {
	Keep *record.Keeper
	Now  func() time.Time
}

// Ask stores a request that waits from now on.
func (d *Desk) Ask(ctx context.Context, r Request, life time.Duration) (Request, error) {
	if life <= 0 || life > MaxLife {
		life = MaxLife
	}
	now := d.Now().UTC()
	r.ID, r.State, r.Created, r.Expires = hsm.NewID().String(), Waiting, now, now.Add(life)
	if err := d.tidy(ctx, now); err != nil {
		return r, err
	}
	content, err := record.JSON(r)
	if err != nil {
		return r, err
	}
	for {
		if _, err := d.Keep.Apply(ctx, record.Create(Prefix+r.ID, content)); !errors.Is(err, record.ErrRotated) {
			return r, err
		}
	}
}

// tidy removes what has ended long ago, and fails when too much waits.
func (d *Desk) tidy(ctx context.Context, now time.Time) error {
	waiting := 0
	var old []record.Change
	_, err := d.Keep.Load(ctx, Prefix, func(stored record.Record) error {
		var r Request
		if err := stored.Decode(&r); err != nil {
			return err
		}
		switch r = r.at(now); {
		case r.State == Waiting:
			waiting++
		case now.Sub(r.Expires) >= kept && len(old) < 50:
			old = append(old, record.Delete(stored))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if waiting >= maxWaiting {
		return fault.New(fault.Conflict, "%d requests wait for approval already; refuse some first (trikey approve list)", waiting)
	}
	if len(old) > 0 {
		_, err = d.Keep.Apply(ctx, old...)
	}
	if errors.Is(err, keystore.ErrConflict) || errors.Is(err, record.ErrRotated) {
		return nil // next time
	}
	return err
}

// List returns the requests that are kept, newest first.
func (d *Desk) List(ctx context.Context) ([]Request, error) {
	all := []Request{}
	_, err := d.Keep.Load(ctx, Prefix, func(stored record.Record) error {
		var r Request
		if err := stored.Decode(&r); err != nil {
			return err
		}
		all = append(all, r.at(d.Now()))
		return nil
	})
	slices.SortFunc(all, func(a, b Request) int { return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID)) })
	return all, err
}

// Find returns one request.
func (d *Desk) Find(ctx context.Context, id string) (Request, error) {
	var r Request
	if err := new(hsm.ID).UnmarshalText([]byte(id)); err != nil {
		return r, noRequest(id)
	}
	stored, err := d.Keep.Get(ctx, Prefix+id)
	if errors.Is(err, keystore.ErrNotFound) {
		return r, noRequest(id)
	}
	if err != nil {
		return r, err
	}
	if err := stored.Decode(&r); err != nil {
		return r, err
	}
	if r.ID != id {
		return r, fault.New(fault.RecordDamaged, "record %s: is not the request that it is named for", stored.Name)
	}
	return r.at(d.Now()), nil
}

func noRequest(id string) error {
	return fault.New(fault.NotFound, "there is no request %q; trikey approve list shows those there are", id)
}

// Grant takes a request from waiting to granted. When it returns without error the caller
// does what is asked for, once, and tells End. digest is that of what the approver has seen.
func (d *Desk) Grant(ctx context.Context, id, digest, approver, person string) (Request, error) {
	return d.decide(ctx, id, func(r *Request) error {
		switch {
		case r.Person == person:
			return fault.New(fault.Forbidden, "%s has asked for this, so somebody else must approve it", person)
		case subtle.ConstantTimeCompare([]byte(r.Digest()), []byte(digest)) != 1:
			return fault.New(fault.Conflict, "what you approve is not what is asked for: the digest of request %s is another one; look at it (trikey approve show %s)", r.ID, r.ID)
		}
		r.State, r.Decider = Granted, approver
		return nil
	})
}

// Refuse ends a request, which may be by who asked for it.
func (d *Desk) Refuse(ctx context.Context, id, why, decider string) (Request, error) {
	return d.decide(ctx, id, func(r *Request) error {
		r.State, r.Decider, r.Why = Refused, decider, why
		return nil
	})
}

func (d *Desk) decide(ctx context.Context, id string, f func(*Request) error) (Request, error) {
	if _, err := d.Find(ctx, id); err != nil {
		return Request{}, err
	}
	r, _, err := record.Update(ctx, d.Keep, Prefix+id, func(r *Request) error {
		if *r = r.at(d.Now()); r.State != Waiting {
			return fault.New(fault.Conflict, "request %s no longer waits: it is %s; ask for it anew", r.ID, r.State)
		}
		if err := f(r); err != nil {
			return err
		}
		r.Decided = d.Now().UTC()
		return nil
	})
	return r, err
}

// End notes how what was granted has ended.
func (d *Desk) End(ctx context.Context, id, outcome string) (Request, error) {
	r, _, err := record.Update(ctx, d.Keep, Prefix+id, func(r *Request) error {
		if r.State != Granted {
			return fault.New(fault.Conflict, "request %s is %s, not granted", r.ID, r.State)
		}
		if r.State, r.Outcome = Done, outcome; outcome != ok {
			r.State = Failed
		}
		return nil
	})
	return r, err
}

// ok is the outcome of what succeeded, as in the audit log.
const ok = "ok"
