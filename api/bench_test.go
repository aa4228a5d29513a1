package api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/trikey/trikey/api"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/guard"
	"github.com/trikey/trikey/kms/limit"
	"github.com/trikey/trikey/kms/policy"
	"github.com/trikey/trikey/kms/token"
)

// caller is an app and the handler that it calls.
type caller struct {
	handler http.Handler
	service *kms.Service
	auth.Credentials
}

// newCaller returns an app that may do everything with key 7 over a real machine and a
// real store.
func newCaller(t testing.TB) *caller {
	t.Helper()
	return newCallerHeld(t, nil)
}

// newCallerHeld returns one that a guard holds to its limits.
func newCallerHeld(t testing.TB, g *guard.Guard) *caller {
	t.Helper()
	var limits *limit.Limits
	if g != nil {
		limits = g.Limits
	}
	machine := hsmtest.Open(t)
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	service := kms.New(kms.Config{Machine: machine, Store: store, Limits: limits, Tokens: token.Config{Issuer: "https://keys.example.com"}})
	t.Cleanup(func() { _ = service.Close() })
	if err := service.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := service.CreateKey(t.Context(), "test", kms.NewKey{Index: 7, Name: "chat", Algorithm: alg.AES256GCM}); err != nil {
		t.Fatal(err)
	}
	apps, err := service.Apps()
	if err != nil {
		t.Fatal(err)
	}
	grants, err := policy.ParseGrants("keys=*;ops=encrypt,decrypt,reencrypt")
	if err != nil {
		t.Fatal(err)
	}
	// 192.0.2.1 is where httptest's requests come from, 127.0.0.1 those over gRPC.
	c, err := apps.Create(t.Context(), "im", policy.Whitelist{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("127.0.0.1/32")}, grants, 0)
	if err != nil {
		t.Fatal(err)
	}
	metrics := api.NewMetrics(func(ctx context.Context) (hsm.Status, error) { return machine.Status(ctx) })
	return &caller{api.New(api.Config{Service: service, Metrics: metrics, Guard: g}), service, c}
}

func (c *caller) post(path string, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.SetBasicAuth(c.AppKey, c.AppSecret)
	w := httptest.NewRecorder()
	c.handler.ServeHTTP(w, r)
	return w
}

const binding = `"context":{"app":"im","chat_type":"group","conversation":"c-4711"}`

// BenchmarkHandler measures the data plane without the network.
func BenchmarkHandler(b *testing.B) {
	c := newCaller(b)
	plaintext := base64.StdEncoding.EncodeToString(make([]byte, 256))
	single := fmt.Sprintf(`{"plaintext":%q,%s}`, plaintext, binding)
	var sealed struct{ Ciphertext string }
	if w := c.post("/v1/keys/7/encrypt", []byte(single)); json.Unmarshal(w.Body.Bytes(), &sealed) != nil || sealed.Ciphertext == "" {
		b.Fatal(w.Body)
	}
	batch := func(item string) string {
		items := bytes.Repeat([]byte(item+","), 100)
		return fmt.Sprintf(`{"items":[%s]}`, items[:len(items)-1])
	}
	for _, bench := range []struct{ name, path, body string }{
		{"encrypt", "/v1/keys/7/encrypt", single},
		{"decrypt", "/v1/keys/7/decrypt", fmt.Sprintf(`{"ciphertext":%q,%s}`, sealed.Ciphertext, binding)},
		{"encrypt100", "/v1/batch/encrypt", batch(fmt.Sprintf(`{"key":7,"plaintext":%q,%s}`, plaintext, binding))},
		{"decrypt100", "/v1/batch/decrypt", batch(fmt.Sprintf(`{"ciphertext":%q,%s}`, sealed.Ciphertext, binding))},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if w := c.post(bench.path, []byte(bench.body)); w.Code != http.StatusOK {
					b.Fatal(w.Body)
				}
			}
		})
	}
}
