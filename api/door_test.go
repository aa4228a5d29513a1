package api_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pquerna/otp/hotp"

	"github.com/trikey/trikey/api"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/people"
)

// TestStepUp: what is sensitive needs a code of the last five minutes, and other things do
// not.
func TestStepUp(t *testing.T) {
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	var clock atomic.Int64
	clock.Store(2_000_000_000)
	service := kms.New(kms.Config{Machine: hsmtest.Open(t), Store: store, Now: func() time.Time { return time.Unix(clock.Load(), 0) }})
	t.Cleanup(func() { _ = service.Close() })
	if err := service.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(api.NewAdmin(service, nil, api.Door{Remote: true, Approval: api.ApprovalPeople}))
	t.Cleanup(server.Close)
	registry, err := service.People()
	if err != nil {
		t.Fatal(err)
	}
	half := people.NewHalf()
	invited, err := registry.Invite(t.Context(), "ann", people.Admin, people.HalfDigest(half))
	if err != nil {
		t.Fatal(err)
	}
	token := ""
	call := func(path string, in any) (int, map[string]any) {
		t.Helper()
		raw, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/admin/v1/"+path, bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		var out map[string]any
		_ = json.NewDecoder(res.Body).Decode(&out)
		return res.StatusCode, out
	}
	phrase := []byte("several words in a row")
	_, enrolled := call("enrol", map[string]any{"name": "ann", "halves": []string{half, invited.Half}, "password": phrase})
	uri, _ := enrolled["uri"].(string)
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	code := func() string {
		c, err := hotp.GenerateCode(u.Query().Get("secret"), uint64(clock.Load()/30))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	status, session := call("login", map[string]any{"name": "ann", "password": phrase, "code": code()})
	if token, _ = session["token"].(string); status != http.StatusOK || token == "" {
		t.Fatalf("login: %d %v", status, session)
	}
	want := func(path string, in any, status int, code string) {
		t.Helper()
		got, out := call(path, in)
		if got != status || code != "" && out["code"] != code {
			t.Errorf("%s: %d %v, want %d %s", path, got, out, status, code)
		}
	}
	want("apps", map[string]any{"name": "im"}, 200, "")
	clock.Add(5 * 60)
	want("apps", map[string]any{"name": "im2"}, 403, "step_up_required")
	want("keys", map[string]any{"index": 7, "name": "chat"}, 200, "")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, server.URL+"/admin/v1/apps/im", bytes.NewReader([]byte(`{"allow_ip":"::/0"}`)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if res, err := server.Client().Do(req); err != nil || res.StatusCode != http.StatusForbidden || res.Body.Close() != nil {
		t.Errorf("an address without a code: %v, %v", res, err)
	}
	want("session/step-up", map[string]any{"code": "000000"}, 401, "unauthorized")
	want("session/step-up", map[string]any{"code": code()}, 200, "")
	want("session/step-up", map[string]any{"code": code()}, 401, "unauthorized") // once
	want("apps", map[string]any{"name": "im2"}, 200, "")
	clock.Add(15 * 60)
	want("keys", map[string]any{"index": 8, "name": "later"}, 401, "unauthorized")
}
