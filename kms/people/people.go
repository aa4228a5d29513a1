// Package people knows the persons who manage the service: their roles, their passwords
// and one-time codes, and their sessions.
//
// A person has one role of three that do not overlap: admins manage keys and apps,
// officers manage people, and both approve what the other asked for; auditors read. A
// person is invited, enrols with both halves of the invitation's code, and from then on
// logs in with a password (RFC 9106) and a code of the time (RFC 6238).
//
// Records are read from the key store at each use, so that what one node changes counts on
// all of them at once. Sessions and failed tries are a process's own: a restart, and
// sealing, ends every session.
package people

import (
	"cmp"
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/record"
)

// Names of records in the key store.
const (
	Prefix         = "people/"            // all of the below
	personPrefix   = Prefix + "person/"   // people/person/NAME: a Person
	passwordPrefix = Prefix + "password/" // people/password/NAME: a hash in PHC form
	totpPrefix     = Prefix + "totp/"     // people/totp/NAME: the secret of the codes
)

// Role is what a person may do.
type Role string

// The roles. What each may do stands beside the routes of the admin API.
const (
	Admin   Role = "admin"
	Officer Role = "officer"
	Auditor Role = "auditor"
)

// ParseRole reads a role.
func ParseRole(text string) (Role, error) {
	switch r := Role(text); r {
	case Admin, Officer, Auditor:
		return r, nil
	}
	return "", fault.New(fault.BadRequest, "role: %q is not %s, %s or %s", text, Admin, Officer, Auditor)
}

// Approves reports whether persons of the role may approve.
func (r Role) Approves() bool { return r == Admin || r == Officer }

// State is where a person stands.
type State string

// The states.
const (
	Invited  State = "invited"  // has not enrolled yet
	Active   State = "active"   // may log in
	Disabled State = "disabled" // for good
)

// Person is somebody who manages the service.
type Person struct {
	Name    string      `json:"name"`
	Role    Role        `json:"role"`
	State   State       `json:"state"`
	Created time.Time   `json:"created"`
	Invite  *invitation `json:"invite,omitzero"` // while it is to be enrolled

	// Step is the time step of the newest code that was accepted: each is accepted once.
	Step uint64 `json:"totp_step,omitzero"`
	// Credentials counts how often password or codes were set: sessions end with theirs.
	Credentials uint32 `json:"credentials,omitzero"`
	// OIDC is who the person is at an OpenID Connect provider, where that may let them in.
	OIDC *Subject `json:"oidc,omitzero"`
}

// Actor is how the audit log names a person.
func (p Person) Actor() string { return string(p.Role) + ":" + p.Name }

// HasBeenAdmin reports whether the person has enrolled as admin, whatever became of them.
func (p Person) HasBeenAdmin() bool { return p.Role == Admin && p.Credentials > 0 }

// Registry is the registry of people.
type Registry struct {
	keep *record.Keeper
	now  func() time.Time

	hashing  chan struct{} // a place for each password that is hashed at this moment
	waiting  chan struct{} // and for each that waits for one
	failures failures

	mu       sync.Mutex // guards sessions
	sessions map[tokenDigest]*session
}

// How many passwords are hashed at a time, at 64 MiB each, and how many more may wait.
const (
	hashers = 2
	waiters = 16
)

// New returns the registry of the people in a key store.
func New(keep *record.Keeper, now func() time.Time) *Registry {
	return &Registry{
		keep: keep, now: now, hashing: make(chan struct{}, hashers), waiting: make(chan struct{}, hashers+waiters),
		sessions: map[tokenDigest]*session{},
	}
}

var personName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,63}$`)

// Find returns the person of that name.
func (g *Registry) Find(ctx context.Context, name string) (Person, error) {
	p, _, err := g.read(ctx, name)
	return p, err
}

func (g *Registry) read(ctx context.Context, name string) (p Person, r record.Record, err error) {
	if personName.MatchString(name) {
		r, err = g.keep.Get(ctx, personPrefix+name)
	} else {
		err = keystore.ErrNotFound
	}
	if errors.Is(err, keystore.ErrNotFound) {
		return p, r, noPerson(name)
	}
	if err != nil {
		return p, r, err
	}
	if err := r.Decode(&p); err != nil {
		return p, r, err
	}
	if r.Name != personPrefix+p.Name {
		return p, r, fault.New(fault.RecordDamaged, "record %s: is not the person that it is named for", r.Name)
	}
	return p, r, nil
}

func noPerson(name string) error {
	return fault.New(fault.NotFound, "there is nobody called %q; trikey admin list shows who there is", name)
}

// List returns everybody in order of their names.
func (g *Registry) List(ctx context.Context) ([]Person, error) {
	all := []Person{}
	_, err := g.keep.Load(ctx, personPrefix, func(r record.Record) error {
		var p Person
		if err := r.Decode(&p); err != nil {
			return err
		}
		all = append(all, p)
		return nil
	})
	slices.SortFunc(all, func(a, b Person) int { return cmp.Compare(a.Name, b.Name) })
	return all, err
}

// Approvers is how many people, other than one, could approve something now.
func (g *Registry) Approvers(ctx context.Context, but string) (int, error) {
	all, err := g.List(ctx)
	n := 0
	for _, p := range all {
		if p.Role.Approves() && p.State == Active && p.Name != but {
			n++
		}
	}
	return n, err
}

// Has reports whether somebody is of a role, or is invited to be.
func (g *Registry) Has(ctx context.Context, role Role) (bool, error) {
	all, err := g.List(ctx)
	return slices.ContainsFunc(all, func(p Person) bool {
		return p.Role == role && (p.State == Active || p.State == Invited && p.Invite.open(g.now()))
	}), err
}

// Disable ends what a person may do, for good, and their sessions.
func (g *Registry) Disable(ctx context.Context, name string) (Person, error) {
	p, err := g.update(ctx, name, func(p *Person) error {
		if p.State == Disabled {
			return fault.New(fault.Conflict, "%s is disabled already", p.Name)
		}
		p.State, p.Invite = Disabled, nil
		return nil
	})
	if err == nil {
		g.endSessionsOf(name)
	}
	return p, err
}

func (g *Registry) update(ctx context.Context, name string, f func(*Person) error) (Person, error) {
	if !personName.MatchString(name) {
		return Person{}, noPerson(name)
	}
	p, _, err := record.Update(ctx, g.keep, personPrefix+name, f)
	if errors.Is(err, keystore.ErrNotFound) {
		return p, noPerson(name)
	}
	return p, err
}

// change replaces a person's record, and with it others of theirs: all or none. It begins
// again when another change was faster.
func (g *Registry) change(ctx context.Context, name string, f func(*Person) (raw map[string][]byte, err error)) (Person, error) {
	for {
		p, r, err := g.read(ctx, name)
		if err != nil {
			return p, err
		}
		raw, err := f(&p)
		if err != nil {
			return p, err
		}
		content, err := record.JSON(p)
		if err != nil {
			return p, err
		}
		changes := []record.Change{record.Replace(r, content)}
		for entry, secret := range raw {
			old, err := g.keep.Get(ctx, entry+name)
			switch {
			case errors.Is(err, keystore.ErrNotFound):
				changes = append(changes, record.Create(entry+name, secret))
			case err != nil:
				return p, err
			default:
				clear(old.Content)
				changes = append(changes, record.Replace(old, secret))
			}
		}
		_, err = g.keep.Apply(ctx, changes...)
		if !errors.Is(err, keystore.ErrConflict) && !errors.Is(err, record.ErrRotated) {
			return p, err
		}
	}
}

// plainName is a name as it is compared with a password.
func plainName(name string) string { return strings.ToLower(name) }
