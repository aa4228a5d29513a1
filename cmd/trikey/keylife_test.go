package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// adminKey is what key commands print, so far as the tests look.
type adminKey struct {
	Index, Version                                   int
	Name, State, Wrapped, Owner, Rotate, Retain, KCV string
	Description                                      string
	Labels                                           map[string]string
	RotateAfter                                      int    `json:"rotate_after"`
	RequireContext                                   string `json:"require_context"`
	DestroyAt                                        string `json:"destroy_at"`
	Rotates                                          string
	Hold                                             object
	Opens                                            []object
	Versions                                         []struct {
		Version, Seals, Opens        int
		State, KCV, Wrapped, Created string
		DestroyAt                    string `json:"destroy_at"`
	}
}

// keyJSON runs a command about a key and returns what it prints.
func (s *site) keyJSON(args ...string) (k adminKey) {
	s.t.Helper()
	s.ok(append([]string{"key"}, append(args, "-o", "json")...)...).json(s.t, &k)
	return k
}

// refused runs a command that must end with that code and say why.
func (s *site) refused(code int, says string, args ...string) {
	s.t.Helper()
	if r := s.run(args...); r.code != code || !strings.Contains(r.err, says) {
		s.t.Errorf("trikey %s: %+v; want exit code %d and %q", strings.Join(args, " "), r, code, says)
	}
}

// TestKeyOrders goes through the orders about a key's life, as a caller of the data plane
// sees them.
func TestKeyOrders(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	context := object{"c": "1"}
	first := s.encrypt("7", []byte("hello"), context)
	encrypt := func() answer { return s.post("/v1/keys/7/encrypt", object{"plaintext": "", "context": context}) }
	decrypt := func(c string) answer {
		return s.post("/v1/keys/7/decrypt", object{"ciphertext": c, "context": context})
	}
	good := func(a answer) {
		t.Helper()
		if a.status != 200 {
			t.Errorf("%d %s", a.status, a.raw)
		}
	}

	if k := s.keyJSON("suspend", "7"); k.State != "suspended" {
		t.Errorf("suspend: %+v", k)
	}
	s.wantError(encrypt(), 409, "key_disabled")
	s.wantError(decrypt(first), 409, "key_disabled")
	s.refused(1, "already", "key", "suspend", "chat")
	s.refused(4, "resume", "key", "rotate", "7")
	s.keyJSON("resume", "chat")
	good(encrypt())
	good(decrypt(first))

	if k := s.keyJSON("rotate", "7"); k.Version != 2 || k.Versions[0].State != "deactivated" || k.Versions[1].State != "active" || len(k.Opens) != 1 {
		t.Errorf("rotate: %+v", k)
	}
	second := s.encrypt("7", []byte("hello"), context)
	s.keyJSON("compromise", "7", "--version", "1")
	s.wantError(decrypt(first), 403, "forbidden")
	s.wantError(s.post("/v1/reencrypt", object{"ciphertext": first, "context": context}), 403, "forbidden")
	good(decrypt(second))
	s.ok("app", "grant", "im", "keys=7;ops=decrypt-compromised")
	good(decrypt(first))
	good(s.post("/v1/reencrypt", object{"ciphertext": first, "context": context}))
	s.ok("app", "revoke", "im", "keys=7;ops=decrypt-compromised")
	s.wantError(decrypt(first), 403, "forbidden")

	if k := s.keyJSON("schedule-destroy", "7", "--version", "1", "--days", "7"); k.State != "active" || k.Versions[0].DestroyAt == "" || k.Versions[0].Wrapped == "" {
		t.Errorf("schedule-destroy of a version: %+v", k)
	}
	s.wantError(decrypt(first), 409, "key_disabled")
	good(encrypt())
	k := s.keyJSON("schedule-destroy", "7")
	at, err := time.Parse(time.RFC3339, k.DestroyAt)
	if days := time.Until(at).Hours() / 24; err != nil || days < 29 || days > 31 || k.State != "suspended" || len(k.Opens) != 0 {
		t.Errorf("schedule-destroy: %+v", k)
	}
	s.wantError(encrypt(), 409, "key_disabled")
	s.wantError(decrypt(second), 409, "key_disabled")
	s.refused(4, "cancel", "key", "rotate", "7")
	if k := s.keyJSON("cancel-destroy", "7"); k.State != "active" || k.DestroyAt != "" || k.Versions[0].DestroyAt != "" || k.Versions[0].State != "compromised" {
		t.Errorf("cancel-destroy: %+v", k)
	}
	good(encrypt())
	for _, days := range []string{"6", "31", "-1"} {
		s.refused(2, "from 7 to 30", "key", "schedule-destroy", "7", "--days", days)
	}
	s.refused(2, "why", "key", "hold", "7")
	if k := s.keyJSON("hold", "7", "--why", "case 4711"); k.Hold["why"] != "case 4711" || k.Hold["by"] != fmt.Sprintf("uid:%d", os.Getuid()) {
		t.Errorf("hold: %+v", k)
	}
	s.refused(1, "case 4711", "key", "schedule-destroy", "7")
	s.keyJSON("release", "7")
	s.refused(1, "not on legal hold", "key", "release", "7")

	if k := s.keyJSON("deactivate", "7"); k.State != "deactivated" {
		t.Errorf("deactivate: %+v", k)
	}
	s.wantError(encrypt(), 409, "key_disabled")
	good(decrypt(second))
	if k := s.keyJSON("rotate", "7"); k.Version != 3 || k.State != "active" {
		t.Errorf("rotate after deactivate: %+v", k)
	}
	good(encrypt())
	s.refused(5, "no key", "key", "suspend", "9")
	if r := s.ok("key", "certificates", "7", "-o", "json"); strings.TrimSpace(r.out) != "[]" {
		t.Errorf("certificates: %+v", r)
	}

	if k := s.keyJSON("create", "--index", "9", "--pre-active"); k.State != "pre-active" {
		t.Errorf("create --pre-active: %+v", k)
	}
	s.wantError(s.post("/v1/keys/9/encrypt", object{"plaintext": ""}), 409, "key_disabled")
	s.keyJSON("activate", "9")
	good(s.post("/v1/keys/9/encrypt", object{"plaintext": ""}))

	// All of it survives a restart.
	s.keyJSON("suspend", "9")
	s.kill()
	s.open()
	s.wantError(s.post("/v1/keys/9/encrypt", object{"plaintext": ""}), 409, "key_disabled")
	s.wantError(decrypt(first), 403, "forbidden")
}

// TestKeySettings is about what can be said of a key.
func TestKeySettings(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	const rule = "app,chat_type:enum(dm|group),conversation"
	k := s.keyJSON("create", "--index", "10", "--name", "daily", "--description", "一天一换", "--label", "team=chat", "--label", "env=prod",
		"--owner", "im", "--rotate", "24h", "--retain", "7d", "--rotate-after", "1000", "--require-context", rule)
	if k.Description != "一天一换" || k.Labels["team"] != "chat" || k.Owner != "im" || k.Rotate != "24h" || k.Retain != "7d" || k.RotateAfter != 1000 ||
		k.RequireContext != rule || k.Rotates == "" {
		t.Errorf("%+v", k)
	}
	for _, says := range []string{"opens", "every 24h", "owner", "team=chat", rule} {
		if r := s.ok("key", "show", "daily"); !strings.Contains(r.out, says) {
			t.Errorf("key show does not say %q:\n%s", says, r.out)
		}
	}
	context := object{"app": "im", "chat_type": "dm", "conversation": "c-1", "extra": "x"}
	s.encrypt("10", []byte("x"), context)
	for name, c := range map[string]object{
		"none": nil, "a field missing": {"app": "im", "chat_type": "dm"}, "not of the list": {"app": "im", "chat_type": "room", "conversation": "c"},
		"empty": {"app": "im", "chat_type": "dm", "conversation": ""},
	} {
		a := s.post("/v1/keys/10/encrypt", object{"plaintext": "", "context": c})
		if s.wantError(a, 422, "context_required"); strings.Contains(a.text("detail"), "room") {
			t.Errorf("%s: the detail repeats the caller's value: %s", name, a.raw)
		}
	}
	other := s.encrypt("7", []byte("x"), nil)
	s.wantError(s.post("/v1/reencrypt", object{"ciphertext": other, "to": object{"key": 10}}), 422, "context_required")
	moved := s.post("/v1/reencrypt", object{"ciphertext": other, "to": object{"key": 10, "context": context, "algorithm": "sm4-gcm"}})
	if moved.status != 200 || moved.text("algorithm") != "sm4-gcm" {
		t.Errorf("re-encryption changes key, algorithm and context: %s", moved.raw)
	}
	batch := s.post("/v1/batch/encrypt", object{"items": []object{{"key": 10, "plaintext": ""}, {"key": 10, "plaintext": "", "context": context}}})
	if !strings.Contains(string(batch.raw), "context_required") || strings.Count(string(batch.raw), "tk1.") != 1 {
		t.Errorf("batch: %s", batch.raw)
	}
	if a := s.call(http.MethodGet, "/v1/keys/10", nil); a.text("require_context") != rule {
		t.Errorf("what the app sees: %s", a.raw)
	}

	// The owner's only: no other app is granted it, or may use it.
	key, secret := s.key, s.secret
	s.refused(4, `"im"`, "app", "create", "--name", "thief", "--grant", "keys=1-20;ops=decrypt")
	s.createApp("other", "127.0.0.1/32", "keys=7,11-20;ops="+allOps)
	s.refused(4, "key 10", "app", "grant", "other", "keys=*;ops=decrypt")
	s.ok("key", "create", "--index", "11")
	eleven := s.encrypt("11", []byte("x"), nil)
	s.ok("key", "update", "11", "--owner", "im")
	s.wantError(s.post("/v1/keys/11/decrypt", object{"ciphertext": eleven}), 403, "forbidden")
	s.wantError(s.post("/v1/keys/11/encrypt", object{"plaintext": ""}), 403, "forbidden")
	s.wantError(s.call(http.MethodGet, "/v1/keys/11", nil), 403, "forbidden")
	s.refused(4, "key 11", "app", "grant", "other", "keys=11;ops=decrypt")
	s.key, s.secret = key, secret
	if a := s.post("/v1/keys/11/decrypt", object{"ciphertext": eleven}); a.status != 200 {
		t.Errorf("the owner: %s", a.raw)
	}

	k = s.keyJSON("update", "10", "--rotate", "0", "--label", "env=", "--description", "", "--strict-context")
	if k.Rotate != "" || k.Retain != "7d" || len(k.Labels) != 1 || k.Description != "" || k.Owner != "im" {
		t.Errorf("update: %+v", k)
	}
	s.wantError(s.post("/v1/keys/10/encrypt", object{"plaintext": "", "context": context}), 422, "context_required")
	for _, bad := range [][]string{
		{"--rotate", "1w"}, {"--retain", "59m"}, {"--require-context", "a:float"}, {"--label", "A=b"}, {"--label", "x"}, {"--description", "a\nb"},
	} {
		if r := s.run(append([]string{"key", "update", "10"}, bad...)...); r.code != 2 {
			t.Errorf("%v: %+v", bad, r)
		}
	}
	s.refused(5, "nobody", "key", "create", "--owner", "nobody")

	s.ok("key", "reserve", "100-199", "--app", "im")
	s.refused(4, "reserved", "key", "create", "--index", "150")
	s.refused(1, "reserved", "key", "reserve", "190-199", "--app", "other")
	s.refused(1, "key 200", "key", "reserve", "200-210", "--app", "other")
	if k := s.keyJSON("create", "--index", "150", "--owner", "im"); k.Owner != "im" {
		t.Errorf("%+v", k)
	}
	if r := s.ok("key", "reserve"); !strings.Contains(r.out, "100-199  im") {
		t.Errorf("key reserve: %s", r.out)
	}
	s.ok("key", "reserve", "100-199", "--remove")
	s.ok("key", "create", "--index", "151")
}

// TestKeyCounts: counts are exact over a restart, show up in the metrics, and rotate a key.
func TestKeyCounts(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	var message string
	for range 20 {
		message = s.encrypt("7", []byte("x"), nil)
	}
	s.post("/v1/keys/7/decrypt", object{"ciphertext": message})
	metrics := func() string {
		r, err := http.Get(s.ops + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Body.Close() }()
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	for op, n := range map[string]int{"seal": 20, "open": 1} {
		if want := fmt.Sprintf(`trikey_key_version_operations_total{key="7",op=%q,version="1"} %d`, op, n); !strings.Contains(metrics(), want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if strings.Contains(metrics(), `key="8"`) {
		t.Error("the metrics have a key that nobody used")
	}
	// Ended by SIGTERM, as an operator does.
	s.stop()
	s.open()
	if v := s.keyJSON("show", "7").Versions[0]; v.Seals != 20 || v.Opens != 1 {
		t.Errorf("after a restart: %+v", v)
	}
	s.ok("key", "update", "7", "--rotate-after", "25")
	deadline := time.Now().Add(30 * time.Second)
	for s.keyJSON("show", "7").Version != 2 {
		if time.Now().After(deadline) {
			t.Fatal("the key is not rotated by its count")
		}
		s.encrypt("7", []byte("x"), nil)
	}
	if k := s.keyJSON("show", "7"); k.Versions[0].Seals < 25 || k.Versions[0].Seals > 40 || k.Versions[0].State != "deactivated" {
		t.Errorf("%+v", k)
	}
}

// What is not signed by the machine is refused, without a service.
func TestCheckCertificates(t *testing.T) {
	t.Parallel()
	check := func(content string) result {
		path := t.TempDir() + "/certificates.json"
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return run(t, nil, nil, "key", "check-certificates", path)
	}
	forged, _ := json.Marshal([]object{{
		"index": 7, "version": 1, "why": "ordered", "hold": "none", "public_key": make([]byte, 32), "fingerprint": "00", "signature": make([]byte, 64),
	}})
	for _, bad := range []string{"", "[]", "{}", `[{"index":7}]`, `[{"what":7}]`, string(forged)} {
		if r := check(bad); r.code != 6 {
			t.Errorf("%s: %+v", bad, r)
		}
	}
}
