package api

import (
	"log/slog"
	"net/http"

	"github.com/go-chi/chi/v5"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
)

// tokenRoutes are those of the admin API that are about tokens. A token is never in a
// path: paths are logged.
func (a admin) tokenRoutes(r chi.Router) {
	r.Post("/admin/v1/tokens/inspect", jsonhttp.Handle(maxAdminBody, a.inspectToken))
	r.Post("/admin/v1/tokens/revoke", jsonhttp.Handle(maxAdminBody, a.revokeToken))
	r.Post("/admin/v1/tokens/revoke-app", jsonhttp.Handle(maxAdminBody, a.revokeAppTokens))
	r.Post("/admin/v1/tokens/revoke-user", jsonhttp.Handle(maxAdminBody, a.revokeUserTokens))
	r.Post("/admin/v1/tokens/revoke-person", jsonhttp.Handle(maxAdminBody, a.revokePersonTokens))
}

// inspectToken tells what a token says, whether it is still good or not.
func (a admin) inspectToken(_ *http.Request, in v1.TokenRef) (v1.AdminToken, error) {
	tokens, err := a.service.Tokens()
	if err != nil {
		return v1.AdminToken{}, err
	}
	t, dead, err := tokens.Inspect(in.Token)
	if err != nil {
		return v1.AdminToken{}, err
	}
	out := v1.AdminToken{Active: dead == nil, Claims: *claimsOf(&t.Claims)}
	if dead != nil {
		out.Why = dead.Error()
	}
	return out, nil
}

func (a admin) revokeToken(r *http.Request, in v1.TokenRef) (jsonhttp.None, error) {
	tokens, err := a.service.Tokens()
	if err != nil {
		return jsonhttp.None{}, err
	}
	if in.ID == "" {
		t, _, err := tokens.Inspect(in.Token)
		if err != nil {
			return jsonhttp.None{}, err
		}
		in.ID = t.ID
	} else if in.Token != "" {
		return jsonhttp.None{}, fault.New(fault.BadRequest, "id: stands alone, without the token itself")
	}
	if err := tokens.RevokeID(r.Context(), string(actor(r)), in.ID); err != nil {
		return jsonhttp.None{}, err
	}
	slog.InfoContext(r.Context(), "token revoked", "by", actor(r), "jti", in.ID)
	return jsonhttp.None{}, nil
}

func (a admin) revokeAppTokens(r *http.Request, in v1.RevokeTokens) (jsonhttp.None, error) {
	appKey, err := a.appKey(r, in.App)
	if err != nil {
		return jsonhttp.None{}, err
	}
	tokens, err := a.service.Tokens()
	if err == nil {
		err = tokens.RevokeApp(r.Context(), string(actor(r)), appKey)
	}
	logged(r, "tokens of an app revoked", in.App, err)
	return jsonhttp.None{}, err
}

func (a admin) revokeUserTokens(r *http.Request, in v1.RevokeTokens) (jsonhttp.None, error) {
	appKey, err := a.appKey(r, in.App)
	if err != nil {
		return jsonhttp.None{}, err
	}
	tokens, err := a.service.Tokens()
	if err == nil {
		err = tokens.RevokeUser(r.Context(), string(actor(r)), appKey, in.User)
	}
	logged(r, "tokens of a user revoked", in.App, err)
	return jsonhttp.None{}, err
}

func (a admin) revokePersonTokens(r *http.Request, in v1.RevokeTokens) (jsonhttp.None, error) {
	tokens, err := a.service.Tokens()
	if err == nil {
		err = tokens.RevokePerson(r.Context(), string(actor(r)), in.Person)
	}
	return jsonhttp.None{}, err
}

func (a admin) appKey(r *http.Request, name string) (string, error) {
	app, _, err := a.service.ReadApp(r.Context(), name)
	if err != nil {
		return "", err
	}
	return app.AppKey, nil
}
