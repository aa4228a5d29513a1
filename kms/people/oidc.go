package people

import (
	"context"
	"errors"
	"net/netip"

	"github.com/trikey/trikey/internal/fault"
)

// Subject is who somebody is at an OpenID Connect provider (OpenID Connect Core 1.0,
// section 5.7: issuer and subject together, and no other claim).
type Subject struct {
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
}

const maxSubject = 255 // OpenID Connect Core 1.0, section 2

// errSubject is the same for a subject that nobody is bound to, or more than one person,
// and for a person who is disabled or yet to enrol.
var errSubject = fault.New(fault.Unauthorized, "the provider knows you, but nobody here is bound to that; an officer asks for it (trikey admin bind-oidc)")

// Bind has a person log in as a provider's subject too; one of "" ends that. The person's
// sessions end.
func (g *Registry) Bind(ctx context.Context, name string, to Subject) (Person, error) {
	if len(to.Subject) > maxSubject {
		return Person{}, fault.New(fault.BadRequest, "subject: has more than %d characters", maxSubject)
	}
	if to.Subject != "" {
		if other, err := g.bound(ctx, to); err == nil && other.Name != name {
			return Person{}, fault.New(fault.Conflict, "subject: is bound to %s already; unbind it there first", other.Name)
		} else if err != nil && !errors.Is(err, errSubject) {
			return Person{}, err
		}
	}
	p, err := g.update(ctx, name, func(p *Person) error {
		if p.State != Active {
			return fault.New(fault.Conflict, "%s is %s; who has enrolled can be bound", p.Name, p.State)
		}
		p.OIDC = nil
		if to.Subject != "" {
			p.OIDC = &to
		}
		p.Credentials++
		return nil
	})
	if err == nil {
		g.endSessionsOf(name)
	}
	return p, err
}

// bound returns the one person who is bound to a subject. Two binds at the same moment could
// give it to two people; then it is nobody's.
func (g *Registry) bound(ctx context.Context, to Subject) (Person, error) {
	all, err := g.List(ctx)
	if err != nil {
		return Person{}, err
	}
	var found []Person
	for _, p := range all {
		if p.State != Disabled && p.OIDC != nil && *p.OIDC == to {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return Person{}, errSubject
	}
	return found[0], nil
}

// strangers is whose failures those at an address are where no name is given.
const strangers = "this address"

// LoginSubject lets in whoever prove says it is. The session has no code yet: what is
// sensitive needs StepUp.
func (g *Registry) LoginSubject(ctx context.Context, from netip.Addr, prove func(context.Context) (Subject, error)) (token string, s Session, err error) {
	if err := g.failures.locked(strangers, from, g.now()); err != nil {
		return "", s, err
	}
	who, err := prove(ctx)
	var p Person
	if err == nil {
		p, err = g.bound(ctx, who)
	}
	if err == nil && p.State != Active {
		err = errSubject
	}
	if errors.Is(err, fault.Unauthorized) {
		return "", s, g.failures.failed(strangers, from, g.now(), err)
	}
	if err != nil {
		return "", s, err
	}
	g.failures.clear(strangers, from)
	token, s = g.begin(p, false)
	return token, s, nil
}
