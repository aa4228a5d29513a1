package main_test

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/keystore/etcd/etcdtest"
	"github.com/trikey/trikey/sdk"
)

// oauth is the unmodified client of golang.org/x/oauth2.
func (s *site) oauth(scopes ...string) (context.Context, *clientcredentials.Config) {
	return context.WithValue(s.t.Context(), oauth2.HTTPClient, s.client),
		&clientcredentials.Config{ClientID: s.key, ClientSecret: s.secret, TokenURL: s.api + "/oauth2/token", Scopes: scopes}
}

func (s *site) access(scopes ...string) string {
	s.t.Helper()
	ctx, cfg := s.oauth(scopes...)
	t, err := cfg.Token(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return t.AccessToken
}

// userToken makes a capability for alice, in the conversation c1.
func (s *site) userToken(operations ...string) string {
	s.t.Helper()
	a := s.post("/v1/tokens/user", object{"user": "alice", "conversations": []string{"c1"}, "operations": operations})
	if a.status != 200 || a.text("token") == "" {
		s.t.Fatalf("%d %s", a.status, a.raw)
	}
	return a.text("token")
}

// bearing calls with a token and nothing else.
func (s *site) bearing(token, method, path string, body any) answer {
	s.t.Helper()
	return s.call(method, path, body, "Authorization", "Bearer "+token)
}

func (s *site) form(path string, form url.Values, header ...string) answer {
	s.t.Helper()
	return s.post(path, form.Encode(), append([]string{"Content-Type", "application/x-www-form-urlencoded"}, header...)...)
}

var message = object{"plaintext": []byte("hello"), "context": object{"conversation": "c1"}}

func (s *site) takes(what, token string, status int) {
	s.t.Helper()
	if a := s.bearing(token, http.MethodPost, "/v1/keys/1/encrypt", message); a.status != status {
		s.t.Errorf("%s: %d %s, want %d", what, a.status, a.raw, status)
	}
}

// TestOAuth2 is about clients that we did not write: golang.org/x/oauth2 as it is, and
// go-jose for the tokens and the published keys.
func TestOAuth2(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "1", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=*;ops=encrypt,decrypt,reencrypt,sign")
	ctx, cfg := s.oauth()
	res, err := cfg.Client(ctx).Post(s.api+"/v1/keys/1/encrypt", "application/json", strings.NewReader(`{"plaintext":"aGVsbG8="}`))
	if err != nil {
		t.Fatal(err)
	}
	if _ = res.Body.Close(); res.StatusCode != 200 {
		t.Errorf("with x/oauth2: %s", res.Status)
	}
	meta := s.call(http.MethodGet, "/.well-known/oauth-authorization-server", nil)
	if meta.text("issuer") != s.api || meta.text("token_endpoint") != s.api+"/oauth2/token" || meta.text("jwks_uri") != s.api+"/.well-known/jwks.json" {
		t.Errorf("metadata: %s", meta.raw)
	}
	compact := s.access()
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(s.call(http.MethodGet, "/.well-known/jwks.json", nil).raw, &set); err != nil {
		t.Fatal(err)
	}
	parsed, err := jwt.ParseSigned(compact, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		jwt.Claims
		Client string `json:"client_id"`
		Scope  string `json:"scope"`
		Class  string `json:"cls"`
	}
	if err := parsed.Claims(set, &claims); err != nil {
		t.Fatalf("the published keys do not verify a token: %v", err)
	}
	if err := claims.Validate(jwt.Expected{Issuer: s.api, AnyAudience: jwt.Audience{s.api}, Subject: s.key}); err != nil || claims.ID == "" ||
		claims.Client != s.key || claims.Class != "app" || claims.Scope != "crypto" || claims.Expiry.Time().Sub(claims.NotBefore.Time()) != time.Hour {
		t.Errorf("%+v, %v", claims, err)
	}
	// A scope narrows.
	narrow := s.access("decrypt")
	if a := s.bearing(narrow, http.MethodPost, "/v1/keys/1/encrypt", message); a.status != 403 {
		t.Errorf("beyond its scope: %d %s", a.status, a.raw)
	}
	if a := s.bearing(narrow, http.MethodPost, "/v1/tokens/user", object{"user": "a", "conversations": []string{"c"}, "operations": []string{"encrypt"}}); a.status != 403 {
		t.Errorf("a user's token that is wider than its maker's: %d %s", a.status, a.raw)
	}
	for what, test := range map[string]struct {
		form url.Values
		name string
	}{
		"no grant type":      {url.Values{}, "invalid_request"},
		"another grant type": {url.Values{"grant_type": {"password"}}, "unsupported_grant_type"},
		"an unknown scope":   {url.Values{"grant_type": {"client_credentials"}, "scope": {"everything"}}, "invalid_scope"},
		"a secret in it":     {url.Values{"grant_type": {"client_credentials"}, "client_secret": {s.secret}}, "invalid_request"},
		"another client":     {url.Values{"grant_type": {"client_credentials"}, "client_id": {"ak2"}}, "invalid_request"},
		"a parameter twice":  {url.Values{"grant_type": {"client_credentials", "client_credentials"}}, "invalid_request"},
	} {
		if a := s.form("/oauth2/token", test.form); a.status != 400 || a.text("error") != test.name || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s", what, a.status, a.raw)
		}
	}
	ctx, cfg = s.oauth()
	cfg.AuthStyle = oauth2.AuthStyleInParams
	if _, err := cfg.Token(ctx); err == nil || !strings.Contains(err.Error(), "invalid_client") {
		t.Errorf("client_secret_post: %v", err)
	}
	ctx, cfg = s.oauth()
	cfg.ClientSecret += "x"
	if _, err := cfg.Token(ctx); err == nil || !strings.Contains(err.Error(), "invalid_client") {
		t.Errorf("a wrong secret: %v", err)
	}
	if a := s.form("/oauth2/token", url.Values{"grant_type": {"client_credentials"}}, "Authorization", "Bearer "+compact); a.status != 403 {
		t.Errorf("a token for a token: %d %s", a.status, a.raw)
	}
	if a := s.form("/oauth2/token?grant_type=client_credentials", url.Values{}); a.status != 400 {
		t.Errorf("parameters in the address: %d %s", a.status, a.raw)
	}
	// Introspection and revocation, by whom the token belongs to and nobody else.
	active := func(token string) bool {
		t.Helper()
		a := s.form("/oauth2/introspect", url.Values{"token": {token}})
		if a.status != 200 || a.body["active"] == false && len(a.body) != 1 {
			t.Errorf("%d %s", a.status, a.raw)
		}
		return a.body["active"] == true
	}
	user := s.userToken("encrypt")
	if !active(compact) || !active(user) || active("nonsense") {
		t.Error("introspection is wrong")
	}
	key, secret := s.key, s.secret
	s.createApp("other", "127.0.0.1/32")
	if active(compact) {
		t.Error("another app's token is told of")
	}
	if a := s.form("/oauth2/revoke", url.Values{"token": {compact}}); a.text("error") != "unauthorized_client" {
		t.Errorf("another app's token: %d %s", a.status, a.raw)
	}
	s.key, s.secret = key, secret
	s.takes("before its revocation", compact, 200)
	for range 2 {
		if a := s.form("/oauth2/revoke", url.Values{"token": {compact}, "token_type_hint": {"access_token"}}); a.status != 200 {
			t.Errorf("%d %s", a.status, a.raw)
		}
	}
	s.takes("after it", compact, 401)
	if active(compact) || !active(user) {
		t.Error("introspection is wrong after a revocation")
	}
	s.takes("the user's", user, 200)
	log := s.ok("audit", "tail", "--lines", "1000", "-o", "json").out
	for _, want := range []string{claims.ID, "revoke-token", "token_user", "oauth_token"} {
		if !strings.Contains(log, want) {
			t.Errorf("the audit does not have %s", want)
		}
	}
	if strings.Contains(log, compact) || strings.Contains(log, strings.Split(compact, ".")[2]) || strings.Contains(s.log.String(), strings.Split(compact, ".")[2]) {
		t.Error("a token is in the audit or the log")
	}
}

// forge makes a JWS of any header and payload.
func forge(header, payload string, sign func(input []byte) []byte) string {
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	return input + "." + base64.RawURLEncoding.EncodeToString(sign([]byte(input)))
}

// TestTokenAttacks: tokens that no machine signed, or that say more than they were
// signed for, in every way that JWT libraries have been known to take them.
func TestTokenAttacks(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "1", "--name", "chat")
	s.ok("key", "create", "--index", "5", "--name", "signer", "--purpose", "sign", "--publish")
	s.createApp("im", "127.0.0.1/32", "keys=*;ops=encrypt,decrypt,reencrypt,sign,datakey")
	good := s.access()
	s.takes("the real one", good, 200)
	parts := strings.Split(good, ".")
	raw, _ := base64.RawURLEncoding.DecodeString(parts[0])
	payloadRaw, _ := base64.RawURLEncoding.DecodeString(parts[1])
	header, payload := string(raw), string(payloadRaw)
	var h struct{ Kid string }
	if err := json.Unmarshal(raw, &h); err != nil || h.Kid == "" {
		t.Fatal(header)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(s.call(http.MethodGet, "/.well-known/jwks.json", nil).raw, &set); err != nil || len(set.Key(h.Kid)) != 1 {
		t.Fatalf("%v", err)
	}
	public, _ := set.Key(h.Kid)[0].Key.(ed25519.PublicKey)
	own, ownKey, _ := ed25519.GenerateKey(nil)
	signOwn := func(in []byte) []byte { return ed25519.Sign(ownKey, in) }
	none := func([]byte) []byte { return nil }
	mac := func(key []byte) func([]byte) []byte {
		return func(in []byte) []byte { m := hmac.New(sha256.New, key); m.Write(in); return m.Sum(nil) }
	}
	spki := s.ok("key", "show", "trikey-tokens", "-o", "json").out
	jwk, _ := json.Marshal(jose.JSONWebKey{Key: own, KeyID: h.Kid, Algorithm: "EdDSA"})
	withHeader := func(more string) string { return strings.TrimSuffix(header, "}") + "," + more + "}" }
	kid := func(id string) string { return strings.Replace(header, `"`+h.Kid+`"`, id, 1) }
	signed := s.post("/v1/keys/5/sign", object{"message": payloadRaw, "format": "jws", "type": "at+jwt"})
	if signed.status != 200 {
		t.Fatalf("%s", signed.raw)
	}
	attacks := map[string]string{
		"alg none":                            forge(strings.Replace(header, "EdDSA", "none", 1), payload, none),
		"alg None":                            forge(strings.Replace(header, "EdDSA", "None", 1), payload, none),
		"no signature":                        parts[0] + "." + parts[1] + ".",
		"two parts":                           parts[0] + "." + parts[1],
		"HS256 with the public key":           forge(strings.Replace(header, "EdDSA", "HS256", 1), payload, mac(public)),
		"HS256 with what is shown of the key": forge(strings.Replace(header, "EdDSA", "HS256", 1), payload, mac([]byte(spki))),
		"HS256 with an empty key":             forge(strings.Replace(header, "EdDSA", "HS256", 1), payload, mac(nil)),
		"signed with a key of one's own":      forge(header, payload, signOwn),
		"a key in the header":                 forge(withHeader(`"jwk":`+string(jwk)), payload, signOwn),
		"a key at an address":                 forge(withHeader(`"jku":"https://127.0.0.1:1/jwks.json"`), payload, signOwn),
		"a certificate in the header":         forge(withHeader(`"x5c":["AAAA"]`), payload, signOwn),
		"a critical extension":                forge(withHeader(`"crit":["exp"]`), payload, signOwn),
		"an unencoded payload":                forge(withHeader(`"b64":false,"crit":["b64"]`), payload, signOwn),
		"an unknown kid":                      forge(kid(`"7.1"`), payload, signOwn),
		"a version that there is not":         forge(kid(`"4294967295.9"`), payload, signOwn),
		"no kid":                              forge(`{"alg":"EdDSA","typ":"at+jwt"}`, payload, signOwn),
		"a path as kid":                       forge(kid(`"../../../../dev/null"`), payload, mac(nil)),
		"SQL as kid":                          forge(kid(`"1' OR '1'='1"`), payload, signOwn),
		"a number as kid":                     forge(kid(`4294967295.1`), payload, signOwn),
		"the kid of a key that seals":         forge(kid(`"1.1"`), payload, signOwn),
		"of a key that signs for apps":        signed.text("jws"),
		"a payload of another token":          parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(payload, `"app"`, `"admin"`, 1))) + "." + parts[2],
		"a later end":                         parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(payload, `"exp":1`, `"exp":9`, 1))) + "." + parts[2],
		"a changed header":                    base64.RawURLEncoding.EncodeToString([]byte(withHeader(`"x":1`))) + "." + parts[1] + "." + parts[2],
		"a claim twice":                       forge(header, strings.TrimSuffix(payload, "}")+`,"cls":"app"}`, signOwn),
		"a tampered signature":                parts[0] + "." + parts[1] + "." + "A" + parts[2][1:] + "",
		"JSON serialisation":                  fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, parts[1], parts[0], parts[2]),
		"encrypted":                           parts[0] + "..." + parts[1] + "." + parts[2],
		"a list of nothing":                   "....",
		"a long one":                          good + strings.Repeat("A", 20<<10),
		"deep JSON":                           forge(header, strings.Repeat(`{"a":`, 5000), signOwn),
		"empty":                               "",
	}
	if parts[2][0] == 'A' {
		attacks["a tampered signature"] = parts[0] + "." + parts[1] + ".B" + parts[2][1:]
	}
	for what, compact := range attacks {
		s.takes(what, compact, 401)
	}
	if a := s.call(http.MethodPost, "/v1/keys/1/encrypt?access_token="+good, message); a.status != 400 {
		t.Errorf("a token in the address: %d %s", a.status, a.raw)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, s.api+"/v1/keys/1/encrypt", strings.NewReader(`{"plaintext":""}`))
	req.Header["Authorization"] = []string{"Bearer " + good, "Bearer nonsense"}
	if a := s.send(req); a.status != 400 {
		t.Errorf("two sets of credentials: %d %s", a.status, a.raw)
	}
	if a := s.bearing("nonsense", http.MethodPost, "/v1/keys/1/encrypt", message); !strings.Contains(strings.Join(a.header.Values("WWW-Authenticate"), ","), `error="invalid_token"`) {
		t.Errorf("no challenge: %v", a.header)
	}
	// The token of another service with the same issuer, index and app.
	other := newSite(t)
	other.configure(func(c *config.Config) { c.Tokens.Issuer = s.api })
	other.open()
	other.createApp("im", "127.0.0.1/32", "keys=*;ops=encrypt")
	s.takes("of another service", other.access(), 401)
	// Nor can anybody get the key of tokens to sign.
	if a := s.post("/v1/keys/trikey-tokens/sign", object{"message": payloadRaw, "format": "jws", "type": "at+jwt"}); a.status != 403 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if r := s.run("key", "update", "trikey-tokens", "--owner", "im"); r.code == 0 {
		if a := s.post("/v1/keys/trikey-tokens/sign", object{"message": payloadRaw}); a.status != 403 {
			t.Errorf("as its owner: %d %s", a.status, a.raw)
		}
	}
	// User tokens: only their own conversation and operations, and no app's routes.
	user := s.userToken("encrypt", "decrypt")
	s.takes("the user's own", user, 200)
	for what, test := range map[string]struct {
		path string
		body any
	}{
		"another conversation": {"/v1/keys/1/encrypt", object{"plaintext": []byte("x"), "context": object{"conversation": "c2"}}},
		"no conversation":      {"/v1/keys/1/encrypt", object{"plaintext": []byte("x")}},
		"another operation":    {"/v1/keys/1/datakey", object{"context": object{"conversation": "c1"}}},
		"a signature":          {"/v1/keys/5/sign", object{"message": []byte("x")}},
		"a token for a user":   {"/v1/tokens/user", object{"user": "bob", "conversations": []string{"c2"}, "operations": []string{"encrypt"}}},
	} {
		if a := s.bearing(user, http.MethodPost, test.path, test.body); a.status != 403 || a.code() != "forbidden" {
			t.Errorf("%s: %d %s", what, a.status, a.raw)
		}
	}
	mixed := s.bearing(user, http.MethodPost, "/v1/batch/encrypt", object{"items": []object{
		{"key": 1, "plaintext": []byte("x"), "context": object{"conversation": "c1"}}, {"key": 1, "plaintext": []byte("x"), "context": object{"conversation": "c2"}},
	}})
	if text := string(mixed.raw); mixed.status != 200 || strings.Count(text, `"ciphertext"`) != 1 || strings.Count(text, `"forbidden"`) != 1 {
		t.Errorf("%d %s", mixed.status, mixed.raw)
	}
	s.ok("app", "disable", "im")
	s.takes("of a disabled app", good, 401)
	s.takes("of a disabled app's user", user, 401)
}

// TestTokenNodes: a token is revoked at one node and refused at the other at once, also
// while the store is away, and after both were killed.
func TestTokenNodes(t *testing.T) {
	t.Parallel()
	files := etcdtest.NewFiles(t)
	c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Installed(t), TLS: files})
	a := newSite(t)
	a.storeIn(c, files)
	a.configure(func(cfg *config.Config) { cfg.Tokens.Issuer = "https://keys.example.com" })
	a.open()
	b := a.join()
	b.configure(func(cfg *config.Config) { cfg.Tokens.Issuer = "https://keys.example.com" })
	a.ok("key", "create", "--index", "1", "--name", "chat")
	b.start()
	if r := b.unseal(a.cards()...); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	a.createApp("im", "127.0.0.1/32", "keys=*;ops=encrypt,decrypt")
	b.use(a)
	one, two := a.access(), a.access()
	refused := func(what, token string, s *site) time.Duration {
		t.Helper()
		return within(t, what, func() bool { return s.bearing(token, http.MethodPost, "/v1/keys/1/encrypt", message).status == 401 })
	}
	within(t, "the other node takes the token", func() bool { return b.bearing(one, http.MethodPost, "/v1/keys/1/encrypt", message).status == 200 })
	if r := a.form("/oauth2/revoke", url.Values{"token": {one}}); r.status != 200 {
		t.Fatalf("%s", r.raw)
	}
	a.takes("where it was revoked", one, 401)
	t.Logf("a revoked token is refused at the other node after %v", refused("one token", one, b))
	b.takes("another token", two, 200)
	user := b.userToken("encrypt")
	a.takes("a user's token of the other node", user, 200)
	b.ok("token", "revoke-user", "im", "alice")
	t.Logf("a user's tokens are refused at the other node after %v", refused("the user's tokens", user, a))
	fresh := b.userToken("encrypt")
	b.takes("a new one of the user", fresh, 200)
	a.takes("a new one of the user, at the other node", fresh, 200)
	// From standard input and from a file, never from the command line.
	file := a.path("token")
	if err := os.WriteFile(file, []byte(fresh+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := run(t, strings.NewReader(fresh), nil, "token", "inspect", "--config", a.path("trikey.yaml")); r.code != 0 || !strings.Contains(r.out, "alice") || !strings.Contains(r.out, "good") {
		t.Errorf("%+v", r)
	}
	a.ok("token", "revoke", "--file", file)
	refused("by the command", fresh, b)
	if r := a.run("token", "inspect", "--file", file); r.code != 0 || !strings.Contains(r.out, "revoked") {
		t.Errorf("%+v", r)
	}
	byID := a.access()
	id := run(t, strings.NewReader(byID), nil, "token", "inspect", "-o", "json", "--config", a.path("trikey.yaml"))
	var told struct {
		ID     string `json:"jti"`
		Active bool
	}
	if id.json(t, &told); !told.Active {
		t.Errorf("%+v", id)
	}
	a.ok("token", "revoke", "--id", told.ID)
	refused("by its id", byID, b)
	if r := a.run("token", "revoke", "--id", "../x"); r.code != 2 {
		t.Errorf("%+v", r)
	}
	// Rotation: both versions count at both nodes.
	a.ok("key", "rotate", "trikey-tokens")
	rotated := a.access()
	within(t, "the other node takes the new version", func() bool { return b.bearing(rotated, http.MethodPost, "/v1/keys/1/encrypt", message).status == 200 })
	b.takes("the version before", two, 200)
	a.ok("token", "revoke-app", "im")
	refused("the app's", two, b)
	refused("the app's", rotated, b)
	last := a.access()
	a.takes("a new one of the app", last, 200)
	// Killed, and the store away.
	b.kill()
	b.start()
	if r := b.unseal(a.cards()...); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	check := func(when string) {
		t.Helper()
		for _, s := range []*site{a, b} {
			for _, token := range []string{one, two, user, fresh, rotated} {
				s.takes("revoked, "+when, token, 401)
			}
			s.takes("not revoked, "+when, last, 200)
		}
	}
	check("after kill -9")
	c[0].Kill()
	within(t, "both say that the store is away", func() bool { return a.degraded() && b.degraded() })
	check("with the store away")
	if r := a.form("/oauth2/revoke", url.Values{"token": {last}}); r.status != 503 || r.text("error") != "temporarily_unavailable" {
		t.Errorf("a revocation without a store: %d %s", r.status, r.raw)
	}
}

// TestTokenClients: the SDK gets tokens by itself, and gets another when one is revoked;
// the command takes one from a file.
func TestTokenClients(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "1", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=*;ops=encrypt,decrypt")
	client, err := sdk.New(sdk.Config{Addresses: []string{s.api}, AppKey: s.key, AppSecret: s.secret, Tokens: true, CAFile: s.path("ca.pem")})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx := sdk.Context{"conversation": "c1"}
	request := sdk.EncryptRequest{Key: sdk.Index(1), Plaintext: []byte("hello"), Context: ctx}
	sealed, err := client.Encrypt(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	// Made with the AppSecret: one that is made with a token ends with that.
	maker, err := sdk.New(sdk.Config{Addresses: []string{s.api}, AppKey: s.key, AppSecret: s.secret, CAFile: s.path("ca.pem")})
	if err != nil {
		t.Fatal(err)
	}
	defer maker.Close()
	user, err := maker.UserToken(t.Context(), sdk.UserTokenRequest{User: "alice", Conversations: []string{"c1"}, Operations: []string{"decrypt"}, TTL: "24h", Keys: "1"})
	if err != nil || time.Until(user.Expires) < 23*time.Hour {
		t.Fatalf("until %v, %v", user.Expires, err)
	}
	file := s.path("user-token")
	if err := os.WriteFile(file, []byte(user.Token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"TRIKEY_ADDR=" + s.api, "TRIKEY_CACERT=" + s.path("ca.pem"), "TRIKEY_TOKEN_FILE=" + file}
	if r := run(t, strings.NewReader(sealed.Ciphertext), env, "decrypt", "--context", "conversation=c1"); r.code != 0 || r.out != "hello" {
		t.Errorf("%+v", r)
	}
	if r := run(t, strings.NewReader("x"), env, "encrypt", "--key", "1", "--context", "conversation=c1"); r.code != 4 {
		t.Errorf("beyond the token: %+v", r)
	}
	if err := client.RevokeToken(t.Context(), user.Token); err != nil {
		t.Fatal(err)
	}
	if r := run(t, strings.NewReader(sealed.Ciphertext), env, "decrypt", "--context", "conversation=c1"); r.code != 4 || !strings.Contains(r.err, "revoked") {
		t.Errorf("revoked: %+v", r)
	}
	s.ok("token", "revoke-app", "im")
	if _, err := client.Encrypt(t.Context(), request); err != nil {
		t.Errorf("after a revocation: %v", err)
	}
	s.ok("app", "disable", "im")
	if _, err := client.Encrypt(t.Context(), request); sdk.Code(err) != "unauthorized" {
		t.Errorf("of a disabled app: %v", err)
	}
}
