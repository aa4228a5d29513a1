package api

import (
	"errors"
	"net/http"
	"net/netip"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/kms/audit"
	"github.com/trikey/trikey/kms/people"
)

// entered records that somebody was let in, or not. Without the record nobody is. A name
// that nobody has is not recorded: it may be a password in the wrong place.
func (a admin) entered(r *http.Request, op, name string, registry *people.Registry, err error) error {
	e := audit.Event{Op: op, Address: addressOf(r), Outcome: audit.Outcome(err)}
	if p, unknown := registry.Find(r.Context(), name); unknown == nil {
		e.Actor = p.Actor()
	}
	switch fault.CodeOf(err) {
	case "":
		e.Kind = audit.Admin
		_, err := a.log.Record(e)
		return err
	case fault.Unauthorized, fault.LockedOut:
		return errors.Join(a.log.Failure(e), err)
	}
	return err
}

func fromOf(r *http.Request) netip.Addr { return remoteAddr(r.RemoteAddr) }

func (a admin) login(r *http.Request, in v1.Login) (v1.Session, error) {
	defer clear(in.Password)
	registry, err := a.service.People()
	if err != nil {
		return v1.Session{}, err
	}
	password, err := secret.Move(in.Password)
	if err != nil {
		return v1.Session{}, err
	}
	defer password.Wipe()
	token, s, err := registry.Login(r.Context(), in.Name, password, in.Code, fromOf(r))
	return a.begun(r, "login", in.Name, registry, token, s, err)
}

// begun answers a login, once how it ended is recorded: a session of which there is no
// record ends.
func (a admin) begun(r *http.Request, op, name string, registry *people.Registry, token string, s people.Session, failed error) (v1.Session, error) {
	if err := a.entered(r, op, name, registry, failed); err != nil {
		if failed == nil {
			registry.End(s)
		}
		return v1.Session{}, err
	}
	out := sessionAnswer(s)
	out.Token = token
	return out, nil
}

func sessionAnswer(s people.Session) v1.Session {
	out := v1.Session{Name: s.Name, Role: string(s.Role), Expires: s.Expires}
	if !s.Code.IsZero() {
		out.StepUp = s.Code.Add(people.StepUpLife)
	}
	return out
}

func (a admin) enrol(r *http.Request, in v1.Enrol) (v1.Enrolled, error) {
	defer clear(in.Password)
	registry, err := a.service.People()
	if err != nil {
		return v1.Enrolled{}, err
	}
	password, err := secret.Move(in.Password)
	if err != nil {
		return v1.Enrolled{}, err
	}
	defer password.Wipe()
	uri, err := registry.Enrol(r.Context(), in.Name, in.Halves, password, fromOf(r))
	return v1.Enrolled{URI: uri}, a.entered(r, "enrol", in.Name, registry, err)
}

// own returns the session of the request. The routes that ask are not on the socket.
func (a admin) own(r *http.Request) (people.Session, *people.Registry, error) {
	s, ok := sessionOf(r.Context())
	if !ok {
		return s, nil, fault.New(fault.Forbidden, "this is for a person who is logged in")
	}
	registry, err := a.service.People()
	return s, registry, err
}

func (a admin) session(r *http.Request, _ jsonhttp.None) (v1.Session, error) {
	s, _, err := a.own(r)
	return sessionAnswer(s), err
}

func (a admin) logout(r *http.Request, _ jsonhttp.None) (jsonhttp.None, error) {
	s, registry, err := a.own(r)
	if err == nil {
		registry.End(s)
	}
	return jsonhttp.None{}, err
}

func (a admin) stepUp(r *http.Request, in v1.StepUp) (v1.Session, error) {
	s, registry, err := a.own(r)
	if err != nil {
		return v1.Session{}, err
	}
	s, err = registry.StepUp(r.Context(), s, in.Code, fromOf(r))
	return sessionAnswer(s), err
}

func (a admin) changePassword(r *http.Request, in v1.NewPassword) (jsonhttp.None, error) {
	defer clear(in.Old)
	defer clear(in.New)
	s, registry, err := a.own(r)
	if err != nil {
		return jsonhttp.None{}, err
	}
	old, err := secret.Move(in.Old)
	if err != nil {
		return jsonhttp.None{}, err
	}
	defer old.Wipe()
	next, err := secret.Move(in.New)
	if err != nil {
		return jsonhttp.None{}, err
	}
	defer next.Wipe()
	return jsonhttp.None{}, registry.ChangePassword(r.Context(), s, old, next, in.Code, fromOf(r))
}

func (a admin) listPeople(r *http.Request, _ jsonhttp.None) (v1.Batch[v1.Person], error) {
	out := v1.Batch[v1.Person]{Items: []v1.Person{}}
	registry, err := a.service.People()
	if err != nil {
		return out, err
	}
	all, err := registry.List(r.Context())
	for _, p := range all {
		out.Items = append(out.Items, personAnswer(p))
	}
	return out, err
}

func personAnswer(p people.Person) v1.Person {
	out := v1.Person{Name: p.Name, Role: string(p.Role), State: string(p.State), Created: p.Created}
	if p.OIDC != nil {
		out.Issuer, out.Subject = p.OIDC.Issuer, p.OIDC.Subject
	}
	return out
}

func (a admin) invite(r *http.Request, in v1.NewPerson) (v1.Invitation, error) {
	registry, err := a.service.People()
	if err != nil {
		return v1.Invitation{}, err
	}
	role, err := people.ParseRole(in.Role)
	if err != nil {
		return v1.Invitation{}, err
	}
	if isLocal(r) {
		has, err := registry.Has(r.Context(), role)
		if err != nil {
			return v1.Invitation{}, err
		}
		if has {
			return v1.Invitation{}, fault.New(fault.Forbidden, "there is an %s already, so the socket no longer makes one: an officer asks for the person, "+
				"and another person approves it (trikey login, trikey admin create)", role)
		}
	}
	return invitation(registry.Invite(r.Context(), in.Name, role, in.Half))
}

func invitation(i people.Invitation, err error) (v1.Invitation, error) {
	return v1.Invitation{Name: i.Name, Role: string(i.Role), Half: i.Half, Expires: i.Expires}, err
}

// isLocal reports whether a request came by the socket.
func isLocal(r *http.Request) bool {
	_, person := sessionOf(r.Context())
	return !person && grantOf(r.Context()) == nil
}

// alone refuses what the socket does about a person only where no two others could.
func alone(r *http.Request, registry *people.Registry, name string) error {
	if !isLocal(r) {
		return nil
	}
	others, err := registry.Approvers(r.Context(), name)
	if err == nil && others >= 2 {
		err = fault.New(fault.Forbidden, "two others can do this for %s, so the socket does not: an officer asks for it, and another person approves it", name)
	}
	return err
}

func (a admin) resetPerson(r *http.Request, in v1.ResetPerson) (v1.Invitation, error) {
	registry, err := a.service.People()
	if err != nil {
		return v1.Invitation{}, err
	}
	p, err := a.person(r)
	if err == nil {
		err = alone(r, registry, p.Name)
	}
	if err != nil {
		return v1.Invitation{}, err
	}
	return invitation(registry.Reset(r.Context(), p.Name, in.Half))
}

func (a admin) disablePerson(r *http.Request, _ jsonhttp.None) (v1.Person, error) {
	registry, err := a.service.People()
	if err != nil {
		return v1.Person{}, err
	}
	p, err := a.person(r)
	if err == nil {
		err = alone(r, registry, p.Name)
	}
	if err != nil {
		return v1.Person{}, err
	}
	p, err = registry.Disable(r.Context(), p.Name)
	return personAnswer(p), err
}
