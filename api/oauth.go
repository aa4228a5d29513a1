package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"time"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms/audit"
	"github.com/trikey/trikey/kms/policy"
	"github.com/trikey/trikey/kms/token"
)

// maxForm bounds the bodies of /oauth2.
const maxForm = token.MaxSize + 4<<10

// oauthFault is a failure by its name in OAuth 2.0, where the code alone does not tell.
type oauthFault struct {
	name string
	error
}

// Unwrap returns the fault.
func (f *oauthFault) Unwrap() error { return f.error }

// oauth wraps a route of /oauth2: it is like the others, but that its errors have the
// form of RFC 6749 section 5.2, which OAuth clients know.
func (s *server) oauth(op string, serve func(*request, url.Values) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		req := &request{Request: r, w: w, in: w}
		err := s.audited(op, req, func(req *request) error {
			form, err := req.form()
			if err != nil {
				return err
			}
			answer, err := serve(req, form)
			if err != nil {
				return err
			}
			req.w.Header().Set("Pragma", "no-cache") // RFC 6749 section 5.1 asks for it
			return req.answer(answer)
		})
		if err != nil {
			oauthError(w, r, err)
		}
		s.cfg.Metrics.observe(op, err, req, time.Since(start))
	}
}

// form reads the parameters of the body. Those of the address are for logs to keep.
func (r *request) form() (url.Values, error) {
	if r.URL.RawQuery != "" {
		return nil, fault.New(fault.BadRequest, "parameters belong into the body, not into the address")
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/x-www-form-urlencoded" {
		return nil, fault.New(fault.BadRequest, "the body must be of the content type application/x-www-form-urlencoded")
	}
	body := jsonhttp.Buffer()
	defer jsonhttp.Release(body)
	if err := jsonhttp.ReadBody(r.in, r.Request, maxForm, body); err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(body.String())
	if err != nil {
		return nil, fault.New(fault.BadRequest, "the body is not a form")
	}
	for name, values := range form {
		switch {
		case len(values) > 1:
			return nil, fault.New(fault.BadRequest, "the parameter %.32q is there more than once", name)
		case name == "client_secret":
			return nil, fault.New(fault.BadRequest, "client_secret: send the AppKey and AppSecret as HTTP Basic authentication (client_secret_basic), and not in the body")
		case name == "client_id" && values[0] != r.caller.AppKey:
			return nil, fault.New(fault.BadRequest, "client_id: is not the one that the request is authenticated as")
		}
	}
	return form, nil
}

// oauthError answers with an error in the form of RFC 6749.
func oauthError(w http.ResponseWriter, r *http.Request, err error) {
	code := fault.CodeOf(err)
	name, status := "invalid_request", http.StatusBadRequest
	var named *oauthFault
	switch {
	case errors.As(err, &named):
		name = named.name
	case code == fault.Unauthorized:
		name, status = "invalid_client", http.StatusUnauthorized
		challenge(w, r)
	case code == fault.Forbidden, code == fault.IPNotAllowed:
		name, status = "unauthorized_client", code.Status()
	case code.Retryable(), code == fault.LockedOut:
		jsonhttp.RetryAfter(w, err)
		name, status = "temporarily_unavailable", code.Status()
	case code.Status() >= http.StatusInternalServerError:
		name, status = "server_error", code.Status()
	}
	var raw [12]byte
	_, _ = rand.Read(raw[:]) // never fails
	p := fault.ProblemOf(err, hex.EncodeToString(raw[:]))
	w.Header().Set(jsonhttp.RequestIDHeader, p.RequestID)
	jsonhttp.Write(w, status, v1.OAuthError{Error: name, Description: p.Detail, Code: string(code), RequestID: p.RequestID})
}

// issueToken is the client credentials grant (RFC 6749 section 4.4). The caller has shown
// its credentials; net/http has decoded Basic, and no character of an AppKey or AppSecret
// is changed by the form encoding that section 2.3.1 wants inside it.
func (s *server) issueToken(r *request, form url.Values) (any, error) {
	if grant := form.Get("grant_type"); grant != "client_credentials" {
		name := "unsupported_grant_type"
		if grant == "" {
			name = "invalid_request"
		}
		return nil, &oauthFault{name, fault.New(fault.BadRequest, "grant_type: is not client_credentials, the one that there is")}
	}
	ask := token.Request{Class: token.App, ClientID: r.caller.AppKey}
	if scope := form.Get("scope"); scope != "" {
		var err error
		if ask.Operations, err = token.ParseScope(scope); err != nil {
			return nil, &oauthFault{"invalid_scope", err}
		}
	}
	m, err := s.mint(r, ask)
	if err != nil {
		return nil, err
	}
	return v1.TokenResponse{AccessToken: m.Token, TokenType: "Bearer", ExpiresIn: m.Expires - m.NotBefore, Scope: m.Scope}, nil
}

// mint issues a token, and has its id recorded.
func (s *server) mint(r *request, ask token.Request) (token.Minted, error) {
	tokens, err := s.cfg.Service.Tokens()
	if err != nil {
		return token.Minted{}, err
	}
	m, err := tokens.Mint(r.Context(), ask)
	if err == nil {
		r.items, r.details = 1, map[string]string{"jti": m.ID}
	}
	return m, err
}

// revokeToken is RFC 7009. A token that is none, or no longer one, needs no revocation.
func (s *server) revokeToken(r *request, form url.Values) (any, error) {
	tokens, t, err := s.ownToken(r, form)
	if t == nil {
		return struct{}{}, err
	}
	return struct{}{}, s.recorded(r, "revoke-token", map[string]string{"jti": t.ID}, func(ctx context.Context) error {
		return tokens.Revoke(ctx, r.caller.Name, &t.Claims)
	})
}

// recorded has a change that an app makes recorded like those of administrators: before
// it is made, and how it ended.
func (s *server) recorded(r *request, op string, details map[string]string, f func(context.Context) error) error {
	m, err := s.cfg.Audit.Begin(r.Context(), audit.Event{
		Kind: audit.Admin, Op: op, Actor: r.caller.Name, Address: r.from.String(), Details: details,
	})
	if err != nil {
		return err
	}
	err = f(r.Context())
	_ = m.End(audit.Outcome(err), nil) // it says so itself
	return err
}

// ownToken returns the token that a form names, nil when it is not good now. One that is
// another client's is refused (RFC 7009 section 2.1).
func (s *server) ownToken(r *request, form url.Values) (*token.Authority, *token.Token, error) {
	if form.Get("token") == "" {
		return nil, nil, required("token")
	}
	tokens, err := s.cfg.Service.Tokens()
	if err != nil {
		return nil, nil, err
	}
	t, err := tokens.Verify(form.Get("token"))
	switch {
	case errors.Is(err, fault.Unauthorized):
		return tokens, nil, nil
	case err != nil:
		return nil, nil, err
	case t.ClientID != r.caller.AppKey:
		return nil, nil, &oauthFault{"unauthorized_client", fault.New(fault.Forbidden, "token: was not issued to this client")}
	}
	return tokens, t, nil
}

// introspect is RFC 7662. An app learns of its own tokens only.
func (s *server) introspect(r *request, form url.Values) (any, error) {
	_, t, err := s.ownToken(r, form)
	if t == nil {
		if named := (*oauthFault)(nil); errors.As(err, &named) {
			err = nil
		}
		return v1.Introspection{}, err
	}
	return v1.Introspection{Active: true, TokenType: "Bearer", Claims: claimsOf(&t.Claims)}, nil
}

func claimsOf(c *token.Claims) *v1.Claims {
	return &v1.Claims{
		Issuer: c.Issuer, Audience: c.Audience, Subject: c.Subject, Expires: c.Expires, Issued: c.Issued, NotBefore: c.NotBefore, ID: c.ID,
		ClientID: c.ClientID, Scope: c.Scope, Class: string(c.Class), Conversations: c.Conversations, Keys: c.Keys,
	}
}

// metadata is RFC 8414. It asks nobody who they are.
func (s *server) metadata(w http.ResponseWriter, r *http.Request) {
	tokens, err := s.cfg.Service.Tokens()
	if err == nil && tokens.Issuer() == "" {
		err = fault.New(fault.NotFound, "this service issues no tokens: tokens.issuer is not set in its configuration")
	}
	if err != nil {
		jsonhttp.Error(w, r, err)
		return
	}
	at := tokens.Issuer()
	basic := []string{"client_secret_basic"}
	m := v1.AuthorizationServer{
		Issuer: at, TokenEndpoint: at + "/oauth2/token", RevocationEndpoint: at + "/oauth2/revoke", IntrospectionEndpoint: at + "/oauth2/introspect",
		JWKSURI: at + "/.well-known/jwks.json", ResponseTypes: []string{}, GrantTypes: []string{"client_credentials"},
		TokenAuth: basic, RevocationAuth: basic, IntrospectionAuth: basic, Scopes: []string{token.ScopeAll},
	}
	for _, op := range policy.Ops() {
		m.Scopes = append(m.Scopes, string(op))
	}
	jsonhttp.Write(w, http.StatusOK, m)
}
