package sdk_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/sdk"
)

// The servers here answer as a Trikey service would: what is tested is what the client
// does with their answers. The command's tests run the client against the service.

// fake is a server that answers with what answer says, and counts.
type fake struct {
	*httptest.Server
	calls atomic.Int32
}

func newFake(t testing.TB, answer func(w http.ResponseWriter, r *http.Request)) *fake {
	f := &fake{}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.calls.Add(1)
		answer(w, r)
	}))
	f.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	f.StartTLS()
	t.Cleanup(f.Close)
	return f
}

func refuse(status int, code string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"code":%q,"title":"title","detail":"detail of %s"}`, code, code)
	}
}

func seal(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, `{"ciphertext":"tk1.x","key":7,"version":2,"algorithm":"sm4-gcm"}`)
}

func newClient(t testing.TB, fakes ...*fake) *sdk.Client {
	t.Helper()
	roots := x509.NewCertPool()
	cfg := sdk.Config{AppKey: "ak", AppSecret: "very secret", RootCAs: roots, Timeout: 5 * time.Second}
	for _, f := range fakes {
		roots.AddCert(f.Certificate())
		cfg.Addresses = append(cfg.Addresses, f.URL)
	}
	c, err := sdk.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestRequests(t *testing.T) {
	var got, path string
	f := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		body, _ := io.ReadAll(r.Body)
		got, path = fmt.Sprintf("%s %s:%s %s", r.Method, user, password, body), r.URL.EscapedPath()
		seal(w, r)
	})
	c := newClient(t, f)
	sealed, err := c.Encrypt(t.Context(), sdk.EncryptRequest{Key: sdk.Index(7), Context: sdk.Context{"a": "b"}})
	if err != nil || sealed.Ciphertext != "tk1.x" || sealed.Key != 7 || sealed.Version != 2 || sealed.Algorithm != "sm4-gcm" {
		t.Errorf("%+v, %v", sealed, err)
	}
	if path != "/v1/keys/7/encrypt" || got != `POST ak:very secret {"plaintext":"","context":{"a":"b"}}` {
		t.Errorf("%s %s", path, got)
	}
	if _, err = c.Encrypt(t.Context(), sdk.EncryptRequest{Key: sdk.Name("a/b"), Algorithm: "sm4-gcm", Plaintext: []byte("x")}); err != nil || path != "/v1/keys/a%2Fb/encrypt" {
		t.Errorf("%s %v", path, err)
	}
	to := sdk.Context{}
	if _, err := c.ReEncrypt(t.Context(), sdk.ReEncryptRequest{Ciphertext: "tk1.y", To: sdk.Target{Key: sdk.Name("n"), Context: &to}}); err != nil ||
		!strings.HasSuffix(got, `{"ciphertext":"tk1.y","to":{"key":"n","context":{}}}`) {
		t.Errorf("%s %v", got, err)
	}
	// A ciphertext that is none never leaves the client.
	before := f.calls.Load()
	if _, err := c.Decrypt(t.Context(), sdk.DecryptRequest{Ciphertext: "nonsense"}); !errors.Is(err, sdk.ErrDecryptFailed) || f.calls.Load() != before {
		t.Errorf("%v", err)
	}
}

func TestFailover(t *testing.T) {
	sealedNode, open := newFake(t, refuse(503, "sealed")), newFake(t, seal)
	dead := newFake(t, seal)
	c := newClient(t, dead, sealedNode, open)
	dead.Close()
	for range 5 {
		if _, err := c.Encrypt(t.Context(), sdk.EncryptRequest{Key: sdk.Index(7)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := sealedNode.calls.Load(); n != 1 || open.calls.Load() != 5 {
		t.Errorf("the sealed node was asked %d times, the open one %d", n, open.calls.Load())
	}
}

func TestAllSealed(t *testing.T) {
	a, b := newFake(t, refuse(503, "sealed")), newFake(t, refuse(503, "unavailable"))
	_, err := newClient(t, b, a).Encrypt(t.Context(), sdk.EncryptRequest{Key: sdk.Index(7)})
	if !errors.Is(err, sdk.ErrSealed) || a.calls.Load() != 2 || b.calls.Load() != 2 {
		t.Errorf("%v after %d and %d calls", err, a.calls.Load(), b.calls.Load())
	}
}

func TestNoRetryOfRefusals(t *testing.T) {
	for code, want := range map[string]error{"decrypt_failed": sdk.ErrDecryptFailed, "forbidden": sdk.ErrForbidden, "unauthorized": sdk.ErrUnauthorized} {
		f := newFake(t, refuse(422, code))
		_, err := newClient(t, f, f).Decrypt(t.Context(), sdk.DecryptRequest{Ciphertext: "x", Key: sdk.Index(7)})
		if !errors.Is(err, want) || f.calls.Load() != 1 || sdk.Code(err) != code || !strings.Contains(err.Error(), "detail of") {
			t.Errorf("%s: %v after %d calls", code, err, f.calls.Load())
		}
	}
	f := newFake(t, refuse(418, "of_a_newer_release"))
	if _, err := newClient(t, f).Key(t.Context(), sdk.Index(7)); sdk.Code(err) != "of_a_newer_release" {
		t.Errorf("%v", err)
	}
	stranger := newFake(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) })
	if _, err := newClient(t, stranger).Key(t.Context(), sdk.Index(7)); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("an answer of something else: %v", err)
	}
}

func TestContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := newFake(t, func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	if _, err := newClient(t, f, f).Key(ctx, sdk.Index(7)); !errors.Is(err, context.Canceled) || f.calls.Load() != 1 {
		t.Errorf("%v after %d calls", err, f.calls.Load())
	}
}

func TestUntrustedServer(t *testing.T) {
	f := newFake(t, seal)
	c, err := sdk.New(sdk.Config{Addresses: []string{f.URL}, RootCAs: x509.NewCertPool()})
	if err != nil {
		t.Fatal(err)
	}
	var bad *tls.CertificateVerificationError
	if _, err := c.Key(t.Context(), sdk.Index(7)); !errors.Is(err, sdk.ErrUnavailable) || !errors.As(err, &bad) || f.calls.Load() != 0 {
		t.Errorf("%v", err)
	}
}

func TestBatchInParts(t *testing.T) {
	var sizes []int
	f := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		if len(raw) > v1.MaxBody {
			t.Errorf("a body of %d bytes", len(raw))
		}
		var in v1.Batch[v1.EncryptItem]
		if err := json.Unmarshal(raw, &in); err != nil {
			t.Error(err)
		}
		sizes = append(sizes, len(in.Items))
		out := v1.Batch[v1.SealedItem]{}
		for _, item := range in.Items {
			result := v1.SealedItem{Ciphertext: string(item.Key), Key: 1}
			if item.Key == "13" {
				result = v1.SealedItem{Error: &v1.ItemError{Code: "forbidden", Detail: "no grant"}}
			}
			out.Items = append(out.Items, result)
		}
		_ = json.NewEncoder(w).Encode(out)
	})
	c := newClient(t, f)
	requests := make([]sdk.EncryptRequest, 2500)
	for i := range requests {
		requests[i] = sdk.EncryptRequest{Key: sdk.Index(uint32(i)), Plaintext: []byte("x")}
	}
	for i := 2000; i < 2010; i++ {
		requests[i].Plaintext = bytes.Repeat([]byte("y"), 1<<20)
	}
	results, err := c.EncryptBatch(t.Context(), requests)
	if err != nil || len(results) != len(requests) {
		t.Fatal(len(results), err)
	}
	for i, r := range results {
		switch {
		case i == 13:
			if !errors.Is(r.Err, sdk.ErrForbidden) {
				t.Errorf("item 13: %+v", r)
			}
		case r.Err != nil || r.Ciphertext != fmt.Sprint(i):
			t.Errorf("item %d: %+v", i, r)
		}
	}
	if len(sizes) < 4 || sizes[0] != 1000 {
		t.Errorf("parts of %v", sizes)
	}
	short := newFake(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"items":[]}`) })
	if _, err := newClient(t, short).DecryptBatch(t.Context(), []sdk.DecryptRequest{{Ciphertext: "x"}}); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("too few results: %v", err)
	}
}

func TestNothingPrintsTheSecret(t *testing.T) {
	cfg := sdk.Config{Addresses: []string{"https://127.0.0.1:1"}, AppKey: "ak", AppSecret: "very secret"}
	c, err := sdk.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "cfg", cfg, "client", c)
	j, err := json.Marshal([]any{cfg, c})
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%v %+v %#v %s %v %+v %#v %s %s", cfg, cfg, cfg, cfg, c, c, c, log.String(), j)
	for _, secret := range []string{"very secret", "YWs6dmVyeSBzZWNyZXQ"} {
		if strings.Contains(all, secret) {
			t.Errorf("printed: %s", all)
		}
	}
}

func TestBadConfig(t *testing.T) {
	for name, cfg := range map[string]sdk.Config{
		"no address": {}, "plain http": {Addresses: []string{"http://x"}}, "no secret file": {Addresses: []string{"https://x"}, AppSecretFile: "/nonexistent"},
		"no CA file": {Addresses: []string{"https://x"}, CAFile: "/nonexistent"},
	} {
		if _, err := sdk.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
