package api_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/hotp"

	"github.com/trikey/trikey/api"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/people"
)

// managedSite is a service with people who manage it.
type managedSite struct {
	t        *testing.T
	service  *kms.Service
	registry *people.Registry
	now      time.Time
}

func newManagedSite(t *testing.T) *managedSite {
	t.Helper()
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	s := &managedSite{t: t, now: time.Unix(2_000_000_000, 0)}
	s.service = kms.New(kms.Config{Machine: hsmtest.Open(t), Store: store, Idle: true, Now: func() time.Time { return s.now }})
	t.Cleanup(func() { _ = s.service.Close() })
	if err := s.service.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.registry, err = s.service.People(); err != nil {
		t.Fatal(err)
	}
	return s
}

// person enrols somebody, and returns the token of their session.
func (s *managedSite) person(name string, role people.Role) string {
	s.t.Helper()
	here := netip.MustParseAddr("127.0.0.1")
	password, err := secret.Move([]byte("several words in a row"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer password.Wipe()
	half := people.NewHalf()
	i, err := s.registry.Invite(s.t.Context(), name, role, people.HalfDigest(half))
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := s.registry.Enrol(s.t.Context(), name, [2]string{half, i.Half}, password, here)
	if err != nil {
		s.t.Fatal(err)
	}
	uri, err := url.Parse(text)
	if err != nil {
		s.t.Fatal(err)
	}
	code, err := hotp.GenerateCode(uri.Query().Get("secret"), uint64(s.now.Unix()/30))
	if err != nil {
		s.t.Fatal(err)
	}
	token, _, err := s.registry.Login(s.t.Context(), name, password, code, here)
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// call makes a call at a door; token is "" on the socket.
func (s *managedSite) call(door api.Door, token, method, path, body string) (status int, out map[string]any) {
	s.t.Helper()
	r := httptest.NewRequestWithContext(s.t.Context(), method, "/admin/v1/"+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	api.NewAdmin(s.service, nil, door).ServeHTTP(w, r)
	_ = json.Unmarshal(w.Body.Bytes(), &out)
	return w.Code, out
}

// TestWidening: once two people could approve, an admin alone lets no other app use a
// key, nor has it seal what it has refused; and narrows both alone.
func TestWidening(t *testing.T) {
	s, listener := newManagedSite(t), api.Door{Remote: true, Approval: api.ApprovalPeople}
	ann := s.person("ann", people.Admin)
	s.person("oz", people.Officer)
	for _, in := range []struct {
		method, path, body string
		status             int
	}{
		{"POST", "apps", `{"name":"im"}`, http.StatusOK},
		{"POST", "apps", `{"name":"other"}`, http.StatusOK},
		{"POST", "keys", `{"index":7,"name":"chat"}`, http.StatusOK},
		{"PATCH", "keys/7", `{"owner":"im"}`, http.StatusOK},
		{"PATCH", "keys/7", `{"owner":"im","description":"of the chat"}`, http.StatusOK},
		{"PATCH", "keys/7", `{"owner":"other"}`, http.StatusAccepted},
		{"PATCH", "keys/7", `{"owner":""}`, http.StatusAccepted},
		{"PATCH", "keys/7", `{"require_context":"app,conversation","strict_context":true}`, http.StatusOK},
		{"PATCH", "keys/7", `{"require_context":"app,conversation"}`, http.StatusOK},
		{"PATCH", "keys/7", `{"require_context":"app"}`, http.StatusAccepted},
		{"PATCH", "keys/7", `{"require_context":""}`, http.StatusAccepted},
		{"PATCH", "keys/7", `{"strict_context":false}`, http.StatusAccepted},
		{"PATCH", "keys/7", `{"retain":"30d"}`, http.StatusAccepted},
		{"PATCH", "keys/7", `{"retain":"0"}`, http.StatusOK},
	} {
		if status, out := s.call(listener, ann, in.method, in.path, in.body); status != in.status {
			t.Errorf("%s %s %s: %d %v, want %d", in.method, in.path, in.body, status, out, in.status)
		}
	}
	k, err := s.service.FindKey("7")
	if err != nil || k.Settings.Owner != "im" || !k.Settings.Context.Strict || len(k.Settings.Context.Fields) != 2 || k.Settings.Retain != 0 {
		t.Errorf("%+v, %v", k.Settings, err)
	}
}

// TestSocketStaysShut: with admin.local none the socket does not serve again because an
// officer has disabled the only admin.
func TestSocketStaysShut(t *testing.T) {
	s, socket := newManagedSite(t), api.Door{Local: api.LocalNone}
	if status, out := s.call(socket, "", "GET", "keys", ""); status != http.StatusOK {
		t.Fatalf("before anybody has enrolled: %d %v", status, out)
	}
	s.person("ann", people.Admin)
	s.person("oz", people.Officer)
	oz := s.person("ossi", people.Officer)
	if status, out := s.call(api.Door{Remote: true, Approval: api.ApprovalPeople}, oz, "POST", "people/ann/disable", ""); status != http.StatusOK {
		t.Fatalf("an officer disables: %d %v", status, out)
	}
	if status, out := s.call(socket, "", "POST", "keys", `{"index":8,"name":"mine"}`); status != http.StatusForbidden {
		t.Errorf("the socket serves: %d %v", status, out)
	}
}
