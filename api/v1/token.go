package v1

import "time"

// The bodies of tokens. Those of /oauth2 are as their RFCs have them.

// TokenResponse answers POST /oauth2/token (RFC 6749 section 5.1).
type TokenResponse struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"` // Bearer
	ExpiresIn   int64  `json:"expires_in"` // seconds
	Scope       string `json:"scope"`
}

// OAuthError answers calls of /oauth2 that fail (RFC 6749 section 5.2), with what a
// problem would have besides.
type OAuthError struct {
	Error       string `json:"error"`
	Description string `json:"error_description"`
	Code        string `json:"code"`
	RequestID   string `json:"request_id"`
}

// Introspection answers POST /oauth2/introspect (RFC 7662 section 2.2). Of a token that
// is not active, or not the caller's, nothing else is told.
type Introspection struct {
	Active    bool   `json:"active"`
	TokenType string `json:"token_type,omitempty"`
	*Claims   `json:",inline"`
}

// Claims are what a token says (docs/format.md).
type Claims struct {
	Issuer        string   `json:"iss"`
	Audience      string   `json:"aud"`
	Subject       string   `json:"sub"`
	Expires       int64    `json:"exp"`
	Issued        int64    `json:"iat"`
	NotBefore     int64    `json:"nbf"`
	ID            string   `json:"jti"`
	ClientID      string   `json:"client_id,omitempty"`
	Scope         string   `json:"scope"`
	Class         string   `json:"cls"`
	Conversations []string `json:"conversations,omitempty"`
	Keys          string   `json:"keys,omitempty"`
}

// AuthorizationServer is GET /.well-known/oauth-authorization-server (RFC 8414).
type AuthorizationServer struct {
	Issuer                string   `json:"issuer"`
	TokenEndpoint         string   `json:"token_endpoint"`
	RevocationEndpoint    string   `json:"revocation_endpoint"`
	IntrospectionEndpoint string   `json:"introspection_endpoint"`
	JWKSURI               string   `json:"jwks_uri"`
	ResponseTypes         []string `json:"response_types_supported"` // none: there is no authorization endpoint
	GrantTypes            []string `json:"grant_types_supported"`
	TokenAuth             []string `json:"token_endpoint_auth_methods_supported"`
	RevocationAuth        []string `json:"revocation_endpoint_auth_methods_supported"`
	IntrospectionAuth     []string `json:"introspection_endpoint_auth_methods_supported"`
	Scopes                []string `json:"scopes_supported"`
}

// UserTokenRequest is the body of POST /v1/tokens/user: a capability for one of the
// app's users.
type UserTokenRequest struct {
	User          string   `json:"user"`
	Conversations []string `json:"conversations"`  // what context.conversation may be
	Operations    []string `json:"operations"`     // as grants name them: encrypt, decrypt, reencrypt, datakey
	Keys          string   `json:"keys,omitempty"` // like 1-99,200; "" is every key that the app is granted
	TTL           string   `json:"ttl,omitempty"`  // like 90m; at most 24h
}

// UserToken answers POST /v1/tokens/user.
type UserToken struct {
	Token   string    `json:"token"`
	ID      string    `json:"id"` // the token's jti, which is no secret
	Expires time.Time `json:"expires"`
}

// TokenRef is the body of POST /admin/v1/tokens/inspect and revoke.
type TokenRef struct {
	Token string `json:"token,omitempty"`
	ID    string `json:"id,omitempty"` // revoke: the token's jti instead, as the audit has it
}

// RevokeTokens is the body of POST /admin/v1/tokens/revoke-app, revoke-user and
// revoke-person: whose tokens.
type RevokeTokens struct {
	App    string `json:"app,omitempty"`
	User   string `json:"user,omitempty"`
	Person string `json:"person,omitempty"`
}

// AdminToken is a token as administrators see it.
type AdminToken struct {
	Active bool   `json:"active"`
	Why    string `json:"why,omitempty"` // it is not
	Claims `json:",inline"`
}
