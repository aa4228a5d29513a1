package api_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/trikey/trikey/kms/policy"
	"github.com/trikey/trikey/kms/token"
)

func (c *caller) mint(t testing.TB, r token.Request) string {
	t.Helper()
	tokens, err := c.service.Tokens()
	if err != nil {
		t.Fatal(err)
	}
	m, err := tokens.Mint(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return m.Token
}

// alice is a user of the app, in one conversation.
func (c *caller) alice() token.Request {
	return token.Request{
		Class: token.User, Subject: "alice", ClientID: c.AppKey, Conversations: []string{"c-4711"},
		Operations: []policy.Op{policy.Encrypt, policy.Decrypt, policy.ReencryptFrom, policy.ReencryptTo, policy.DataKey},
	}
}

func (c *caller) with(compact, method, path string, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+compact)
	w := httptest.NewRecorder()
	c.handler.ServeHTTP(w, r)
	return w
}

// TestClasses tries a token of every class at every route that there is: a route that is
// not in one of these lists fails.
func TestClasses(t *testing.T) {
	c := newCaller(t)
	tokens := map[token.Class]string{
		token.App: c.mint(t, token.Request{Class: token.App, ClientID: c.AppKey}), token.User: c.mint(t, c.alice()),
		token.Admin: c.mint(t, token.Request{Class: token.Admin, Subject: "ann"}), token.Auditor: c.mint(t, token.Request{Class: token.Auditor, Subject: "bob"}),
	}
	user := []token.Class{token.App, token.User}
	app := []token.Class{token.App}
	lists := map[string][]token.Class{
		"POST /v1/keys/{key}/encrypt": user, "POST /v1/keys/{key}/decrypt": user, "POST /v1/reencrypt": user, "POST /v1/batch/encrypt": user,
		"POST /v1/batch/decrypt": user, "POST /v1/batch/reencrypt": user, "POST /v1/stream/{key}/encrypt": user, "POST /v1/stream/{key}/decrypt": user,
		"POST /v1/ciphertext/inspect": user, "POST /v1/keys/{key}/datakey": user, "GET /v1/keys/{key}": user,
		"POST /v1/keys/{key}/sign": app, "POST /v1/keys/{key}/verify": app, "POST /v1/keys/{key}/mac": app, "POST /v1/keys/{key}/mac/verify": app,
		"GET /v1/random": app, "POST /v1/tokens/user": app, "POST /oauth2/revoke": app, "POST /oauth2/introspect": app,
		"POST /oauth2/token": {},
	}
	open := map[string]bool{"GET /.well-known/oauth-authorization-server": true, "GET /.well-known/jwks.json": true}
	routes, ok := c.handler.(chi.Routes)
	if !ok {
		t.Fatal("the handler does not tell its routes")
	}
	seen := 0
	err := chi.Walk(routes, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		seen++
		name := method + " " + route
		allowed, listed := lists[name]
		path := strings.ReplaceAll(route, "{key}", "7")
		r := httptest.NewRequest(method, path, nil)
		w := httptest.NewRecorder()
		c.handler.ServeHTTP(w, r)
		if open[name] {
			if w.Code != http.StatusOK {
				t.Errorf("%s for anybody: %d", name, w.Code)
			}
			return nil
		}
		if !listed {
			t.Errorf("%s is in no list: say who may use it", name)
		}
		if w.Code != http.StatusUnauthorized {
			t.Errorf("%s without credentials: %d", name, w.Code)
		}
		for class, compact := range tokens {
			w := c.with(compact, method, path, nil)
			refused := w.Code == http.StatusForbidden && strings.Contains(w.Body.String(), "token")
			may := false
			for _, a := range allowed {
				may = may || a == class
			}
			if refused == may || w.Code == http.StatusUnauthorized {
				t.Errorf("%s with a token of the class %s: %d %s", name, class, w.Code, w.Body)
			}
		}
		return nil
	})
	if err != nil || seen != len(lists)+len(open) {
		t.Errorf("%d routes, %v", seen, err)
	}
}

// TestUserTokenEndsWithApps: what an app's token has made for a user does not outlive it;
// what the app's secret makes may.
func TestUserTokenEndsWithApps(t *testing.T) {
	c := newCaller(t)
	app := c.mint(t, token.Request{Class: token.App, ClientID: c.AppKey, TTL: 10 * time.Minute})
	for _, ttl := range []string{"", "24h"} {
		body := fmt.Sprintf(`{"user":"alice","conversations":["c1"],"operations":["decrypt"],"ttl":%q}`, ttl)
		w := c.with(app, http.MethodPost, "/v1/tokens/user", []byte(body))
		var out struct{ Expires time.Time }
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
		if left := time.Until(out.Expires); left > 10*time.Minute {
			t.Errorf("ttl %q: it lasts %s", ttl, left)
		}
	}
	long := c.alice()
	long.TTL = token.MaxUser
	c.mint(t, long)
}

// BenchmarkToken is what each way of showing who one is costs a single encryption.
func BenchmarkToken(b *testing.B) {
	c := newCaller(b)
	body := []byte(fmt.Sprintf(`{"plaintext":%q,%s}`, base64.StdEncoding.EncodeToString(make([]byte, 256)), binding))
	app, user := c.mint(b, token.Request{Class: token.App, ClientID: c.AppKey}), c.mint(b, c.alice())
	for _, bench := range []struct {
		name string
		call func() *httptest.ResponseRecorder
	}{
		{"basic", func() *httptest.ResponseRecorder { return c.post("/v1/keys/7/encrypt", body) }},
		{"app", func() *httptest.ResponseRecorder { return c.with(app, http.MethodPost, "/v1/keys/7/encrypt", body) }},
		{"user", func() *httptest.ResponseRecorder { return c.with(user, http.MethodPost, "/v1/keys/7/encrypt", body) }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if w := bench.call(); w.Code != http.StatusOK {
					b.Fatal(w.Body)
				}
			}
		})
	}
}
