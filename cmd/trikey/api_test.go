package main_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// openSite is a site with keys 7 and 8, and an app that may use 1 to 99.
func openSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.ok("key", "create", "--index", "8", "--name", "sm", "--algorithm", "sm4-gcm")
	s.ok("key", "create", "--index", "200", "--name", "other")
	s.createApp("im", "127.0.0.1/32", "keys=1-99;ops="+allOps)
	return s
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// TestRefusals is the table of what the data plane refuses.
func TestRefusals(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	context := object{"c": "1"}
	good := s.encrypt("7", []byte("hello"), context)
	big := bytes.Repeat([]byte{'x'}, 8<<20+1)
	many := make([]object, 1001)
	for i := range many {
		many[i] = object{"ciphertext": good}
	}
	pairs := object{}
	for i := range 33 {
		pairs[fmt.Sprint(i)] = ""
	}
	for _, test := range []struct {
		name, path string
		body       any
		status     int
		code       string
		detail     string
	}{
		{"no such key", "/v1/keys/9/encrypt", object{"plaintext": ""}, 404, "key_not_found", "9"},
		{"no such key, decrypt", "/v1/keys/9/decrypt", object{"ciphertext": good}, 404, "key_not_found", ""},
		{"no grant", "/v1/keys/200/encrypt", object{"plaintext": ""}, 403, "forbidden", ""},
		{"no grant, no key", "/v1/keys/201/encrypt", object{"plaintext": ""}, 403, "forbidden", ""},
		{"no grant, by name", "/v1/keys/other/encrypt", object{"plaintext": ""}, 403, "forbidden", ""},
		{"no such name", "/v1/keys/nobody/encrypt", object{"plaintext": ""}, 403, "forbidden", ""},
		{"index too large", "/v1/keys/4294967296/encrypt", object{"plaintext": ""}, 403, "forbidden", ""},
		{"reencrypt to no grant", "/v1/reencrypt", object{"ciphertext": good, "context": context, "to": object{"key": 200}}, 403, "forbidden", ""},
		{"reencrypt to no key", "/v1/reencrypt", object{"ciphertext": good, "context": context, "to": object{"key": "9"}}, 404, "key_not_found", ""},
		{"another key's ciphertext", "/v1/keys/8/decrypt", object{"ciphertext": good, "context": context}, 422, "decrypt_failed", ""},
		{"no plaintext", "/v1/keys/7/encrypt", object{}, 400, "bad_request", "plaintext"},
		{"null plaintext", "/v1/keys/7/encrypt", `{"plaintext":null}`, 400, "bad_request", "plaintext"},
		{"plaintext a number", "/v1/keys/7/encrypt", `{"plaintext":1}`, 400, "bad_request", "plaintext"},
		{"plaintext no base64", "/v1/keys/7/encrypt", `{"plaintext":"?"}`, 400, "bad_request", "plaintext"},
		{"unknown field", "/v1/keys/7/encrypt", `{"plaintext":"","nonce":"AAAA"}`, 400, "bad_request", "nonce"},
		{"field twice", "/v1/keys/7/encrypt", `{"plaintext":"","plaintext":"QQ=="}`, 400, "bad_request", "plaintext"},
		{"field in capitals", "/v1/keys/7/encrypt", `{"Plaintext":""}`, 400, "bad_request", "Plaintext"},
		{"context a list", "/v1/keys/7/encrypt", `{"plaintext":"","context":[]}`, 400, "bad_request", "context"},
		{"context of numbers", "/v1/keys/7/encrypt", `{"plaintext":"","context":{"a":1}}`, 400, "bad_request", "context.a"},
		{"context too many", "/v1/keys/7/encrypt", object{"plaintext": "", "context": pairs}, 400, "bad_request", "context"},
		{"context too long", "/v1/keys/7/encrypt", object{"plaintext": "", "context": object{"k": strings.Repeat("x", 5000)}}, 400, "bad_request", "context.k"},
		{"unknown algorithm", "/v1/keys/7/encrypt", object{"plaintext": "", "algorithm": "rot13"}, 400, "bad_request", "algorithm"},
		{"no ciphertext", "/v1/keys/7/decrypt", object{}, 400, "bad_request", "ciphertext"},
		{"ciphertext of words", "/v1/keys/7/decrypt", object{"ciphertext": "not a ciphertext"}, 422, "decrypt_failed", ""},
		{"no JSON", "/v1/keys/7/encrypt", "hello", 400, "bad_request", "JSON"},
		{"half a JSON", "/v1/keys/7/encrypt", `{"plaintext":`, 400, "bad_request", "JSON"},
		{"two JSONs", "/v1/keys/7/encrypt", `{"plaintext":""}{}`, 400, "bad_request", ""},
		{"a list", "/v1/keys/7/encrypt", `[]`, 400, "bad_request", ""},
		{"nothing", "/v1/keys/7/encrypt", "", 400, "bad_request", ""},
		{"deep", "/v1/keys/7/encrypt", strings.Repeat(`{"plaintext":`, 1<<18), 400, "bad_request", ""},
		{"invalid UTF-8", "/v1/keys/7/encrypt", "{\"plaintext\":\"\",\"algorithm\":\"\xff\"}", 400, "bad_request", ""},
		{"too large", "/v1/keys/7/encrypt", big, 413, "too_large", ""},
		{"no items", "/v1/batch/encrypt", object{}, 400, "bad_request", "items"},
		{"too many items", "/v1/batch/decrypt", object{"items": many}, 413, "too_large", "items"},
		{"no such path", "/v1/nothing", object{}, 404, "not_found", ""},
		{"inspect of words", "/v1/ciphertext/inspect", object{"ciphertext": "words"}, 400, "bad_request", "ciphertext"},
	} {
		a := s.post(test.path, test.body)
		if a.status != test.status || a.code() != test.code || !strings.Contains(a.text("detail"), test.detail) ||
			a.text("request_id") == "" || a.text("title") == "" || a.text("type") == "" || a.body["status"] != float64(test.status) {
			t.Errorf("%s: %d %.400s; want %d %s %q", test.name, a.status, a.raw, test.status, test.code, test.detail)
		}
	}
	s.wantError(s.call(http.MethodGet, "/v1/keys/7/encrypt", nil), 405, "method_not_allowed")
	s.wantError(s.post("/v1/keys/7/encrypt", object{"plaintext": ""}, "Content-Type", "text/html"), 415, "unsupported_media_type")
	s.wantError(s.post("/v1/keys/7/encrypt", object{"plaintext": ""}, "Content-Encoding", "gzip"), 415, "unsupported_media_type")
	if a := s.post("/v1/keys/%63hat/encrypt", object{"plaintext": ""}); a.status != 200 {
		t.Errorf("a name in percent encoding: %s", a.raw)
	}
	// Whatever is wrong with a ciphertext, the caller is told the same.
	first := s.post("/v1/keys/7/decrypt", object{"ciphertext": "nonsense"})
	for _, c := range []object{{"ciphertext": good}, {"ciphertext": "tk1.AAAA"}, {"ciphertext": good[:60]}, {"ciphertext": good, "context": object{"c": "2"}}} {
		a := s.post("/v1/keys/7/decrypt", c)
		delete(a.body, "request_id")
		delete(first.body, "request_id")
		if fmt.Sprint(a.body) != fmt.Sprint(first.body) {
			t.Errorf("%v is told from %v", a.body, first.body)
		}
	}
	if a := s.call(http.MethodGet, "/v1/keys/chat", nil); a.status != 200 || a.body["index"] != 7.0 || a.text("algorithm") != "aes-256-gcm" || bytes.Contains(a.raw, []byte("tw1.")) {
		t.Errorf("key metadata: %s", a.raw)
	}
	s.wantError(s.call(http.MethodGet, "/v1/keys/200", nil), 403, "forbidden")
	s.wantError(s.call(http.MethodGet, "/v1/keys/9", nil), 404, "key_not_found")
	if a := s.post("/v1/ciphertext/inspect", object{"ciphertext": good}); a.body["key"] != 7.0 || a.body["version"] != 1.0 || a.text("algorithm") != "aes-256-gcm" {
		t.Errorf("inspect: %s", a.raw)
	}
}

// TestWho is about who may call, and from where.
func TestWho(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	key, secret := s.key, s.secret
	encrypt := func() answer { t.Helper(); return s.post("/v1/keys/7/encrypt", object{"plaintext": ""}) }
	as := func(k, v string) answer { t.Helper(); s.key, s.secret = k, v; return encrypt() }

	unknown, wrong := as("ak0000000000000000", secret), as(key, secret[:len(secret)-1]+"x")
	s.wantError(unknown, 401, "unauthorized")
	s.wantError(wrong, 401, "unauthorized")
	for _, a := range []answer{unknown, wrong} {
		delete(a.body, "request_id")
		a.header.Del("X-Request-Id")
		a.header.Del("Date")
	}
	if fmt.Sprint(unknown.body, unknown.header) != fmt.Sprint(wrong.body, wrong.header) {
		t.Errorf("an unknown AppKey is told from a wrong secret:\n%v %v\n%v %v", unknown.body, unknown.header, wrong.body, wrong.header)
	}
	if !strings.HasPrefix(wrong.header.Get("Www-Authenticate"), "Basic") {
		t.Errorf("401 without a challenge: %v", wrong.header)
	}
	s.wantError(as("", ""), 401, "unauthorized")
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, s.api+"/v1/keys/7/encrypt", strings.NewReader("{}"))
	s.wantError(s.send(req), 401, "unauthorized")

	// A second secret; the first stays valid until the next rotation.
	var rotated struct {
		AppSecret string `json:"app_secret"`
	}
	s.ok("app", "rotate-secret", "im", "-o", "json").json(t, &rotated)
	for _, v := range []string{secret, rotated.AppSecret} {
		if a := as(key, v); a.status != 200 {
			t.Errorf("with two secrets: %s", a.raw)
		}
	}
	s.ok("app", "rotate-secret", "im")
	s.wantError(as(key, secret), 401, "unauthorized")
	if a := as(key, rotated.AppSecret); a.status != 200 {
		t.Errorf("the secret before the newest: %s", a.raw)
	}

	// Addresses.
	s.ok("app", "deny-ip", "im", "127.0.0.1/32")
	s.wantError(encrypt(), 403, "ip_not_allowed")
	if a := s.post("/v1/keys/7/encrypt", object{"plaintext": ""}, "X-Forwarded-For", "127.0.0.2"); a.code() != "ip_not_allowed" {
		t.Errorf("X-Forwarded-For of nobody: %s", a.raw)
	}
	s.ok("app", "allow-ip", "im", "::ffff:127.0.0.0/112") // IPv4, written as IPv6
	if a := encrypt(); a.status != 200 {
		t.Errorf("an address allowed again: %s", a.raw)
	}
	if r := s.run("app", "allow-ip", "im", "300.0.0.1"); r.code != 2 {
		t.Errorf("an address that is none: %+v", r)
	}

	// Grants.
	s.ok("app", "revoke", "im", "keys=7;ops=encrypt")
	s.wantError(encrypt(), 403, "forbidden")
	if a := s.post("/v1/keys/8/encrypt", object{"plaintext": ""}); a.status != 200 {
		t.Errorf("the neighbour's grant: %s", a.raw)
	}
	s.ok("app", "grant", "im", "keys=7;ops=encrypt")
	sealed := encrypt().text("ciphertext")
	s.ok("app", "revoke", "im", "keys=7;ops=reencrypt-from")
	s.wantError(s.post("/v1/reencrypt", object{"ciphertext": sealed, "to": object{"key": 8}}), 403, "forbidden")
	s.ok("app", "grant", "im", "keys=7;ops=reencrypt-from")
	s.ok("app", "revoke", "im", "keys=8;ops=reencrypt-to")
	s.wantError(s.post("/v1/reencrypt", object{"ciphertext": sealed, "to": object{"key": 8}}), 403, "forbidden")
	if a := s.post("/v1/reencrypt", object{"ciphertext": sealed}); a.status != 200 {
		t.Errorf("reencrypt to the same key: %s", a.raw)
	}
	if r := s.run("app", "grant", "im", "keys=7;ops=fly"); r.code != 2 {
		t.Errorf("an operation that is none: %+v", r)
	}

	s.ok("app", "disable", "im")
	s.wantError(encrypt(), 401, "unauthorized")
	if r := s.run("app", "show", "nobody"); r.code != 5 {
		t.Errorf("an app that is none: %+v", r)
	}
	if r := s.run("app", "create", "--name", "im"); r.code != 1 {
		t.Errorf("an app of that name again: %+v", r)
	}
	if strings.Contains(s.log.String(), secret) || strings.Contains(s.log.String(), rotated.AppSecret) {
		t.Error("the log has a secret")
	}
}

func TestForeignAddress(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	transport, _ := s.client.Transport.(*http.Transport)
	elsewhere := transport.Clone()
	elsewhere.DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}).DialContext
	s.client.Transport = elsewhere
	s.wantError(s.post("/v1/keys/7/encrypt", object{"plaintext": ""}), 403, "ip_not_allowed")

	// Behind a proxy that is trusted, the last address it did not write itself counts.
	s.kill()
	s.open("TRIKEY_API_TRUSTED_PROXIES=[127.0.0.9/32, 10.0.0.0/8]")
	for forwarded, status := range map[string]int{
		"127.0.0.1": 200, "1.2.3.4": 403, "127.0.0.1, 1.2.3.4": 403, "1.2.3.4, 127.0.0.1": 200, "127.0.0.1, 10.1.1.1": 200,
		"::ffff:127.0.0.1": 200, "": 403, "nonsense": 403, "127.0.0.1, nonsense": 403,
	} {
		a := s.post("/v1/keys/7/encrypt", object{"plaintext": ""}, "X-Forwarded-For", forwarded)
		if a.status != status {
			t.Errorf("X-Forwarded-For %q: %d %s, want %d", forwarded, a.status, a.raw, status)
		}
	}
}

// TestTamper changes every byte of ciphertexts, and contexts in every way.
func TestTamper(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	for _, key := range []string{"7", "8"} {
		context := object{"app": "im", "conversation": "c-1"}
		text := s.encrypt(key, []byte("hello"), context)
		path := "/v1/keys/" + key + "/decrypt"
		if a := s.post(path, object{"ciphertext": text, "context": context}); a.status != 200 {
			t.Fatal(string(a.raw))
		}
		for i := range text {
			for _, c := range []byte{'A', 'B', '_', '.', '\n', '='} {
				if c == text[i] {
					continue
				}
				changed := text[:i] + string(c) + text[i+1:]
				s.wantError(s.post(path, object{"ciphertext": changed, "context": context}), 422, "decrypt_failed")
			}
		}
		raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(text, "tk1."))
		if err != nil {
			t.Fatal(err)
		}
		header := base64.StdEncoding.EncodeToString([]byte(`{"app":"im","conversation":"c-1"}`))
		if a := s.post(path, raw, "Content-Type", "application/octet-stream", "Trikey-Context", header); string(a.raw) != "hello" {
			t.Fatal(string(a.raw))
		}
		for i := range raw {
			for bit := range 8 {
				changed := bytes.Clone(raw)
				changed[i] ^= 1 << bit
				s.wantError(s.post(path, changed, "Content-Type", "application/octet-stream", "Trikey-Context", header), 422, "decrypt_failed")
			}
		}
		for n := range raw {
			s.wantError(s.post(path, raw[:n], "Content-Type", "application/octet-stream", "Trikey-Context", header), 422, "decrypt_failed")
		}
		for _, c := range []object{
			nil,
			{},
			{"app": "im"},
			{"conversation": "c-1"},
			{"app": "im", "conversation": "c-2"},
			{"app": "im", "conversation": "c-1", "x": ""},
			{"app": "im", "Conversation": "c-1"},
			{"app": "imc", "onversation": "c-1"},
			{"app": "im ", "conversation": "c-1"},
		} {
			s.wantError(s.post(path, object{"ciphertext": text, "context": c}), 422, "decrypt_failed")
		}
	}
}

func TestSizesAndBodies(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	for _, size := range []int{0, 1, 100, 1 << 20, 8 << 20} {
		plaintext := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		if size <= 1<<20 {
			text := s.encrypt("7", plaintext, nil)
			a := s.post("/v1/keys/7/decrypt", object{"ciphertext": text})
			if a.status != 200 || a.text("plaintext") != base64.StdEncoding.EncodeToString(plaintext) {
				t.Errorf("JSON, %d bytes: %d %.200s", size, a.status, a.raw)
			}
		}
		raw := s.post("/v1/keys/8/encrypt", plaintext, "Content-Type", "application/octet-stream")
		if raw.status != 200 || len(raw.raw) != size+54 || raw.header.Get("Content-Type") != "application/octet-stream" ||
			raw.header.Get("Trikey-Key") != "8" || raw.header.Get("Trikey-Version") != "1" || raw.header.Get("Trikey-Algorithm") != "sm4-gcm" {
			t.Errorf("raw, %d bytes: %d %v", size, raw.status, raw.header)
		}
		if back := s.post("/v1/keys/8/decrypt", raw.raw, "Content-Type", "application/octet-stream"); !bytes.Equal(back.raw, plaintext) {
			t.Errorf("raw, %d bytes: %d %.200s", size, back.status, back.raw)
		}
	}
	over := make([]byte, 8<<20+1)
	s.wantError(s.post("/v1/keys/8/encrypt", over, "Content-Type", "application/octet-stream"), 413, "too_large")
	s.wantError(s.post("/v1/keys/8/encrypt", io.Reader(nil), "Content-Type", "application/octet-stream", "Trikey-Context", "?"), 400, "bad_request")
	for _, algorithm := range []string{"aes-256-gcm", "aes-128-gcm", "chacha20-poly1305", "sm4-gcm"} {
		a := s.post("/v1/keys/7/encrypt", object{"plaintext": "QUJD", "algorithm": algorithm})
		if back := s.post("/v1/keys/7/decrypt", object{"ciphertext": a.text("ciphertext")}); a.text("algorithm") != algorithm || back.text("plaintext") != "QUJD" {
			t.Errorf("%s: %s %s", algorithm, a.raw, back.raw)
		}
	}
}

// TestBatch: results come in order, and a bad item of any kind costs only itself.
func TestBatch(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	items := make([]any, 100)
	for i := range items {
		items[i] = object{"key": []any{7, "8", "chat"}[i%3], "plaintext": b64(fmt.Sprint(i)), "context": object{"n": fmt.Sprint(i)}, "reference": fmt.Sprint("r", i)}
	}
	type item struct {
		Ciphertext, Plaintext, Reference string
		Key                              int
		Error                            *struct{ Code, Detail string }
	}
	batch := func(path string, items []any) []item {
		t.Helper()
		a := s.post(path, object{"items": items})
		var out struct{ Items []item }
		if err := json.Unmarshal(a.raw, &out); err != nil || a.status != 200 || len(out.Items) != len(items) {
			t.Fatalf("%s: %d %.300s", path, a.status, a.raw)
		}
		return out.Items
	}
	sealed := batch("/v1/batch/encrypt", items)
	for _, bad := range []struct {
		item any
		code string
	}{
		{object{"key": 9, "plaintext": "", "reference": "bad"}, "key_not_found"},
		{object{"key": 200, "plaintext": "", "reference": "bad"}, "forbidden"},
		{object{"key": 7, "reference": "bad"}, "bad_request"},
		{object{"plaintext": "", "reference": "bad"}, "bad_request"},
		{object{"key": 7, "plaintext": "no base64!", "reference": "bad"}, "bad_request"},
		{object{"key": 7, "plaintext": 5, "reference": "bad"}, "bad_request"},
		{object{"key": -1, "plaintext": "", "reference": "bad"}, "bad_request"},
		{object{"key": 7, "plaintext": "", "unknown": 1, "reference": "bad"}, "bad_request"},
		{object{"key": 7, "plaintext": "", "context": "x", "reference": "bad"}, "bad_request"},
		{"not an object", "bad_request"},
	} {
		with := append([]any{}, items...)
		with[42] = bad.item
		failed := 0
		for i, it := range batch("/v1/batch/encrypt", with) {
			switch {
			case it.Error != nil && i == 42:
				failed++
				if _, isObject := bad.item.(object); it.Error.Code != bad.code || isObject && it.Reference != "bad" {
					t.Errorf("%v: %+v %+v", bad.item, it, it.Error)
				}
			case it.Error != nil || it.Ciphertext == "" || it.Reference != fmt.Sprint("r", i):
				t.Errorf("%v: item %d: %+v %+v", bad.item, i, it, it.Error)
			}
		}
		if failed != 1 {
			t.Errorf("%v: did not fail", bad.item)
		}
	}
	decrypt, reencrypt := make([]any, 100), make([]any, 100)
	for i, it := range sealed {
		if it.Error != nil || it.Key != []int{7, 8, 7}[i%3] {
			t.Fatalf("item %d: %+v", i, it)
		}
		decrypt[i] = object{"ciphertext": it.Ciphertext, "context": object{"n": fmt.Sprint(i)}}
		reencrypt[i] = object{"ciphertext": it.Ciphertext, "context": object{"n": fmt.Sprint(i)}, "to": object{"key": "sm", "context": object{"m": "1"}}}
	}
	decrypt[13] = object{"ciphertext": sealed[13].Ciphertext}
	reencrypt[13] = object{"ciphertext": "tk1.AAAA"}
	for i, it := range batch("/v1/batch/decrypt", decrypt) {
		if i == 13 {
			if it.Error == nil || it.Error.Code != "decrypt_failed" {
				t.Errorf("a moved item: %+v", it)
			}
			continue
		}
		if it.Plaintext != b64(fmt.Sprint(i)) {
			t.Errorf("item %d opened as %q, %+v", i, it.Plaintext, it.Error)
		}
	}
	for i, it := range batch("/v1/batch/reencrypt", reencrypt) {
		if i == 13 {
			if it.Error == nil || it.Error.Code != "decrypt_failed" {
				t.Errorf("a broken item: %+v", it)
			}
			continue
		}
		back := s.post("/v1/keys/8/decrypt", object{"ciphertext": it.Ciphertext, "context": object{"m": "1"}})
		if back.text("plaintext") != b64(fmt.Sprint(i)) {
			t.Errorf("item %d: %s", i, back.raw)
		}
	}
	// The empty plaintext is there, and not left out; the empty context is one.
	nothing := s.encrypt("7", []byte{}, nil)
	if a := s.post("/v1/batch/decrypt", object{"items": []object{{"ciphertext": nothing}}}); !bytes.Contains(a.raw, []byte(`"plaintext":""`)) {
		t.Errorf("an empty plaintext: %s", a.raw)
	}
	bound := s.encrypt("7", []byte("x"), object{"c": "1"})
	unbound := s.post("/v1/reencrypt", object{"ciphertext": bound, "context": object{"c": "1"}, "to": object{"context": object{}}})
	if a := s.post("/v1/keys/7/decrypt", object{"ciphertext": unbound.text("ciphertext")}); a.text("plaintext") != b64("x") {
		t.Errorf("re-encrypted to no context: %s, %s", unbound.raw, a.raw)
	}
	if empty := batch("/v1/batch/encrypt", []any{}); len(empty) != 0 {
		t.Error("an empty batch has results")
	}
	res, err := http.Get(s.ops + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	for _, want := range []string{`trikey_requests_total{app="im",code="ok",op="batch_encrypt"}`, "trikey_sealed 0", "trikey_machine_up 1", "trikey_unseal_progress 3", "trikey_request_duration_seconds_bucket", `trikey_items_total{op="batch_decrypt"} 101`} {
		if !bytes.Contains(metrics, []byte(want)) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}
