// Package oidc has an OpenID Connect provider say who a person is: the authorization code
// flow (OpenID Connect Core 1.0, section 3.1) with PKCE (RFC 7636, S256), of a program at
// the person's computer that listens at a loopback address (RFC 8252, section 7.3).
//
// The program never sees a token. What binds a flow together, the state, the nonce and the
// code verifier, stays in the service's memory: for ten minutes, and for one try.
package oidc

import (
	"context"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Config is what a client of a provider needs.
type Config struct {
	Issuer   string           // as in the provider's metadata (OpenID Connect Discovery 1.0)
	ClientID string           // of this service at the provider
	Secret   *secret.Bytes    // nil for a public client (RFC 6749, section 2.1); the client's to wipe
	HTTP     *http.Client     // to the provider
	Now      func() time.Time // the time
}

// Client is a relying party of one provider.
type Client struct {
	cfg   Config
	flows flows

	mu       sync.Mutex // guards provider
	provider *oidc.Provider
}

// New returns a client. The provider is asked for its metadata when it is first needed, so
// that one that is away keeps nothing from starting.
func New(cfg Config) *Client { return &Client{cfg: cfg, flows: flows{now: cfg.Now}} }

// Issuer is the provider's name.
func (c *Client) Issuer() string { return c.cfg.Issuer }

// Close wipes the client's secret.
func (c *Client) Close() error {
	if c.cfg.Secret != nil {
		c.cfg.Secret.Wipe()
	}
	c.cfg.HTTP.CloseIdleConnections()
	return nil
}

// errRefused is the same for a state that nobody has, a code that the provider does not
// take, and an ID token that is not for this flow.
var errRefused = fault.New(fault.Unauthorized, "the provider's answer is not valid, was used already, or is older than ten minutes; begin again (trikey login --oidc)")

// discover returns the provider by its metadata.
func (c *Client) discover(ctx context.Context) (*oidc.Provider, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.provider != nil {
		return c.provider, nil
	}
	p, err := oidc.NewProvider(oidc.ClientContext(ctx, c.cfg.HTTP), c.cfg.Issuer)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the OpenID Connect provider does not tell its metadata; look at admin.oidc, or log in by password")
	}
	c.provider = p
	return p, nil
}

func (c *Client) config(p *oidc.Provider, redirect string) *oauth2.Config {
	return &oauth2.Config{ClientID: c.cfg.ClientID, Endpoint: p.Endpoint(), RedirectURL: redirect, Scopes: []string{oidc.ScopeOpenID}}
}

// Finish exchanges a code for an ID token, and returns the subject that it is about (OpenID
// Connect Core 1.0, section 2). A state counts once, whatever comes of it.
func (c *Client) Finish(ctx context.Context, state, code string) (subject string, err error) {
	f, ok := c.flows.take(state)
	if !ok || code == "" {
		return "", errRefused
	}
	p, err := c.discover(ctx)
	if err != nil {
		return "", err
	}
	ctx = oidc.ClientContext(ctx, c.cfg.HTTP)
	token, err := c.exchange(ctx, c.config(p, f.redirect), f, code)
	if err != nil {
		return "", err
	}
	raw, _ := token.Extra("id_token").(string)
	id, err := p.VerifierContext(ctx, &oidc.Config{ClientID: c.cfg.ClientID, Now: c.cfg.Now}).Verify(ctx, raw)
	if err != nil {
		slog.WarnContext(ctx, "an ID token was refused", "reason", err.Error())
		return "", errRefused
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(f.nonce)) != 1 || id.Subject == "" {
		return "", errRefused
	}
	return id.Subject, nil
}

func (c *Client) exchange(ctx context.Context, cfg *oauth2.Config, f flow, code string) (token *oauth2.Token, err error) {
	cfg.Endpoint.AuthStyle = oauth2.AuthStyleInParams // client_id alone
	if s := c.cfg.Secret; s != nil {
		cfg.Endpoint.AuthStyle = oauth2.AuthStyleInHeader // client_secret_basic
		if err := s.Use(func(b []byte) error { cfg.ClientSecret = string(b); return nil }); err != nil {
			return nil, err
		}
	}
	token, err = cfg.Exchange(ctx, code, oauth2.VerifierOption(f.verifier))
	var refused *oauth2.RetrieveError
	if errors.As(err, &refused) && refused.Response.StatusCode < 500 {
		slog.WarnContext(ctx, "the OpenID Connect provider refused a code", "error", refused.ErrorCode)
		return nil, errRefused
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "the OpenID Connect provider does not answer as one; try again, or log in by password")
	}
	return token, nil
}
