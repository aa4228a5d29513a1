package api

import (
	"context"
	"fmt"
	"net/http"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms/oidc"
	"github.com/trikey/trikey/kms/people"
)

// provider is what people log in by.
func (a admin) provider() (*oidc.Client, error) {
	if a.oidc == nil {
		return nil, fault.New(fault.BadRequest, "this service has no OpenID Connect provider (admin.oidc); log in by password (trikey login)")
	}
	return a.oidc, nil
}

func (a admin) beginOIDC(r *http.Request, in v1.BeginOIDC) (v1.BegunOIDC, error) {
	provider, err := a.provider()
	if err != nil {
		return v1.BegunOIDC{}, err
	}
	where, state, err := provider.Begin(r.Context(), in.RedirectURI, fromOf(r))
	return v1.BegunOIDC{URL: where, State: state}, err
}

func (a admin) finishOIDC(r *http.Request, in v1.FinishOIDC) (v1.Session, error) {
	provider, err := a.provider()
	if err != nil {
		return v1.Session{}, err
	}
	registry, err := a.service.People()
	if err != nil {
		return v1.Session{}, err
	}
	token, s, err := registry.LoginSubject(r.Context(), fromOf(r), func(ctx context.Context) (people.Subject, error) {
		subject, err := provider.Finish(ctx, in.State, in.Code)
		return people.Subject{Issuer: provider.Issuer(), Subject: subject}, err
	})
	return a.begun(r, "login-oidc", s.Name, registry, token, s, err)
}

func (a admin) bindOIDC(r *http.Request, in v1.BindOIDC) (v1.Person, error) {
	provider, err := a.provider()
	if err != nil {
		return v1.Person{}, err
	}
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
	p, err = registry.Bind(r.Context(), p.Name, people.Subject{Issuer: provider.Issuer(), Subject: in.Subject})
	return personAnswer(p), err
}

// approveBind asks for every binding: whoever the provider calls so is that person then.
func approveBind(a admin, r *http.Request, body []byte) (string, error) {
	var in v1.BindOIDC
	if err := jsonhttp.Unmarshal(body, &in); err != nil {
		return "", err
	}
	provider, err := a.provider()
	if err != nil {
		return "", err
	}
	p, err := a.person(r)
	if err != nil {
		return "", err
	}
	if in.Subject == "" {
		return fmt.Sprintf("let %q, %s, log in by password alone", p.Name, p.Role), nil
	}
	return fmt.Sprintf("let whoever %s knows as %q log in as %q, %s", provider.Issuer(), in.Subject, p.Name, p.Role), nil
}
