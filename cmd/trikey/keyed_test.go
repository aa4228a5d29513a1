package main_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/sdk"
)

// keyedSite has a key of each purpose, and an app with every grant but for key 30.
func keyedSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat", "--algorithm", "sm4-cbc-hmac-sm3")
	s.ok("key", "create", "--index", "8", "--name", "lookup", "--purpose", "deterministic")
	s.ok("key", "create", "--index", "9", "--name", "codes", "--purpose", "mac", "--algorithm", "hmac-sm3")
	s.ok("key", "create", "--index", "10", "--name", "tokens", "--purpose", "sign", "--publish")
	s.ok("key", "create", "--index", "11", "--name", "receipts", "--purpose", "sign", "--algorithm", "ecdsa-p256", "--publish")
	s.ok("key", "create", "--index", "12", "--name", "guomi", "--purpose", "sign", "--algorithm", "sm2", "--publish")
	s.ok("key", "create", "--index", "13", "--name", "hidden", "--purpose", "sign")
	s.ok("key", "create", "--index", "30", "--name", "other", "--purpose", "mac")
	s.createApp("im", "127.0.0.1/32", "keys=1-29;ops="+allOps+",datakey,sign,verify,mac")
	return s
}

func (s *site) good(path string, body any) answer {
	s.t.Helper()
	a := s.post(path, body)
	if a.status != 200 {
		s.t.Fatalf("%s: %d %s", path, a.status, a.raw)
	}
	return a
}

func (a answer) bytes(field string) []byte {
	b, _ := base64.StdEncoding.DecodeString(a.text(field))
	return b
}

func TestKeyedCalls(t *testing.T) {
	t.Parallel()
	s := keyedSite(t)
	context := object{"conversation": "c-1"}

	// Suites 5 and 6.
	one, two := s.encrypt("7", []byte("hello"), context), s.encrypt("7", []byte("hello"), context)
	if a := s.good("/v1/keys/7/decrypt", object{"ciphertext": one, "context": context}); one == two || string(a.bytes("plaintext")) != "hello" {
		t.Errorf("%s", a.raw)
	}
	if a := s.good("/v1/ciphertext/inspect", object{"ciphertext": one}); a.text("algorithm") != "sm4-cbc-hmac-sm3" || a.body["plaintext_bytes"] != 15.0 {
		t.Errorf("%s", a.raw)
	}
	one, two = s.encrypt("8", []byte("hello"), context), s.encrypt("lookup", []byte("hello"), context)
	if a := s.good("/v1/keys/8/decrypt", object{"ciphertext": one, "context": context}); one != two || string(a.bytes("plaintext")) != "hello" {
		t.Errorf("%s and %s, %s", one, two, a.raw)
	}
	moved := s.good("/v1/reencrypt", object{"ciphertext": one, "context": context, "to": object{"key": 7}})
	if moved.text("algorithm") != "sm4-cbc-hmac-sm3" {
		t.Errorf("%s", moved.raw)
	}

	// Data keys.
	a := s.good("/v1/keys/7/datakey", object{"context": context, "bytes": 64, "plaintext": true})
	if b := s.good("/v1/keys/7/decrypt", object{"ciphertext": a.text("wrapped"), "context": context}); len(a.bytes("plaintext")) != 64 || b.text("plaintext") != a.text("plaintext") {
		t.Errorf("%s, %s", a.raw, b.raw)
	}
	if a := s.good("/v1/keys/7/datakey", object{}); a.body["plaintext"] != nil || !strings.HasPrefix(a.text("wrapped"), "tk1.") {
		t.Errorf("%s", a.raw)
	}

	// Codes.
	mac := s.good("/v1/keys/9/mac", object{"message": b64("m")})
	index := s.good("/v1/keys/9/mac", object{"message": b64("m"), "context": object{}})
	if len(mac.bytes("mac")) != 32 || mac.text("mac") == index.text("mac") || mac.text("algorithm") != "hmac-sm3" {
		t.Errorf("%s, %s", mac.raw, index.raw)
	}
	for code, want := range map[string]bool{mac.text("mac"): true, index.text("mac"): false, b64(""): false} {
		if a := s.good("/v1/keys/9/mac/verify", object{"message": b64("m"), "mac": code}); a.body["valid"] != want {
			t.Errorf("%s", a.raw)
		}
	}
	if a := s.call(http.MethodGet, "/v1/random?bytes=1024", nil); len(a.bytes("random")) != 1024 {
		t.Errorf("%s", a.raw)
	}
	for _, test := range []struct {
		path   string
		body   any
		status int
		code   string
	}{
		{"/v1/keys/9/encrypt", object{"plaintext": ""}, 422, "algorithm_not_allowed"},
		{"/v1/keys/7/mac", object{"message": ""}, 422, "algorithm_not_allowed"},
		{"/v1/keys/9/sign", object{"message": ""}, 422, "algorithm_not_allowed"},
		{"/v1/keys/10/mac", object{"message": ""}, 422, "algorithm_not_allowed"},
		{"/v1/keys/8/datakey", object{}, 422, "algorithm_not_allowed"},
		{"/v1/keys/7/encrypt", object{"plaintext": "", "algorithm": "aes-256-siv"}, 422, "algorithm_not_allowed"},
		{"/v1/keys/8/encrypt", object{"plaintext": "", "algorithm": "aes-256-gcm"}, 422, "algorithm_not_allowed"},
		{"/v1/keys/12/sign", object{"message": "", "format": "jws"}, 422, "algorithm_not_allowed"},
		{"/v1/keys/30/mac", object{"message": ""}, 403, "forbidden"},
		{"/v1/keys/31/sign", object{"message": ""}, 403, "forbidden"},
		{"/v1/keys/29/sign", object{"message": ""}, 404, "key_not_found"},
		{"/v1/keys/7/datakey", object{"bytes": 17}, 400, "bad_request"},
		{"/v1/keys/9/mac", object{}, 400, "bad_request"},
		{"/v1/keys/9/mac/verify", object{"message": ""}, 400, "bad_request"},
		{"/v1/keys/10/sign", object{"message": "", "format": "pgp"}, 400, "bad_request"},
		{"/v1/keys/10/sign", object{"message": "", "format": "der"}, 400, "bad_request"},
		{"/v1/keys/10/sign", object{"message": "", "type": "JWT"}, 400, "bad_request"},
		{"/v1/keys/10/verify", object{"message": ""}, 400, "bad_request"},
		{"/v1/keys/10/verify", object{"jws": "x", "message": ""}, 400, "bad_request"},
		{"/v1/keys/10/verify", object{"message": "", "signature": "", "version": 9}, 404, "key_not_found"},
	} {
		if a := s.post(test.path, test.body); a.status != test.status || a.code() != test.code || a.text("detail") == "" {
			t.Errorf("%s %v: %d %s; want %d %s", test.path, test.body, a.status, a.raw, test.status, test.code)
		}
	}
	for _, bytes := range []string{"0", "1025", "-1", "x"} {
		s.wantError(s.call(http.MethodGet, "/v1/random?bytes="+bytes, nil), 400, "bad_request")
	}
}

// Whoever has the published keys can check signatures without the service.
func TestSignatures(t *testing.T) {
	t.Parallel()
	s := keyedSite(t)
	s.ok("key", "rotate", "10")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.api+"/.well-known/jwks.json", nil)
	if err != nil {
		t.Fatal(err)
	}
	published := s.send(req) // without credentials
	var set struct {
		Keys []struct{ Kty, Crv, X, Y, Kid, Alg, Use string }
	}
	if err := json.Unmarshal(published.raw, &set); err != nil || published.status != 200 || len(set.Keys) != 3 {
		t.Fatalf("%s, %v", published.raw, err)
	}
	valid := map[string]func(message, signature []byte) bool{}
	for _, k := range set.Keys {
		x, _ := base64.RawURLEncoding.DecodeString(k.X)
		y, _ := base64.RawURLEncoding.DecodeString(k.Y)
		switch k.Kty + k.Crv + k.Alg + k.Use {
		case "OKPEd25519EdDSAsig":
			valid[k.Kid] = func(message, signature []byte) bool { return ed25519.Verify(x, message, signature) }
		case "ECP-256ES256sig":
			key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
			if err != nil {
				t.Fatal(err)
			}
			valid[k.Kid] = func(message, signature []byte) bool {
				digest := sha256.Sum256(message)
				der, err := alg.ToDER(signature)
				return err == nil && ecdsa.VerifyASN1(key, digest[:], der)
			}
		default:
			t.Errorf("%+v", k)
		}
	}
	for key, kid := range map[string]string{"tokens": "10.2", "receipts": "11.1"} {
		jws := s.good("/v1/keys/"+key+"/sign", object{"message": b64(`{"a":1}`), "format": "jws", "type": "JWT"}).text("jws")
		at := strings.LastIndexByte(jws, '.')
		signature, _ := base64.RawURLEncoding.DecodeString(jws[at+1:])
		if valid[kid] == nil || !valid[kid]([]byte(jws[:at]), signature) {
			t.Errorf("%s is not signed by %s", jws, kid)
		}
		if a := s.good("/v1/keys/"+key+"/verify", object{"jws": jws}); a.body["valid"] != true || string(a.bytes("payload")) != `{"a":1}` {
			t.Errorf("%s", a.raw)
		}
		if a := s.good("/v1/keys/"+key+"/verify", object{"jws": jws[:at] + ".AAAA"}); a.body["valid"] != false || a.body["payload"] != nil {
			t.Errorf("%s", a.raw)
		}
	}
	for key, formats := range map[string][]string{"tokens": {"raw"}, "receipts": {"raw", "der"}, "guomi": {"raw", "der"}, "hidden": {"raw"}} {
		for _, format := range formats {
			a := s.good("/v1/keys/"+key+"/sign", object{"message": b64("m"), "format": format})
			for message, want := range map[string]bool{"m": true, "n": false} {
				body := object{"message": b64(message), "signature": a.text("signature"), "format": format, "version": a.body["version"]}
				if v := s.good("/v1/keys/"+key+"/verify", body); v.body["valid"] != want {
					t.Errorf("%s %s: %s", key, format, v.raw)
				}
			}
		}
		if info := s.call(http.MethodGet, "/v1/keys/"+key, nil); info.text("purpose") != "sign" || !bytes.Contains(info.raw, []byte("BEGIN PUBLIC KEY")) {
			t.Errorf("%s", info.raw)
		}
	}
	if a := s.good("/v1/keys/11/verify", object{"message": b64("m"), "signature": b64("no DER"), "format": "der"}); a.body["valid"] != false {
		t.Errorf("%s", a.raw)
	}
}

// The SDK against the service.
func TestKeyedSDK(t *testing.T) {
	t.Parallel()
	s := keyedSite(t)
	c, err := sdk.New(sdk.Config{Addresses: []string{s.api}, AppKey: s.key, AppSecret: s.secret, CAFile: s.path("ca.pem")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, context := t.Context(), sdk.Context{"field": "phone"}
	key, err := c.DataKey(ctx, sdk.DataKeyRequest{Key: sdk.Index(7), Context: context, Plaintext: true})
	if err != nil || len(key.Plaintext) != 32 {
		t.Fatal(err)
	}
	if opened, err := c.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: key.Wrapped, Context: context}); err != nil || !bytes.Equal(opened.Plaintext, key.Plaintext) {
		t.Errorf("%v", err)
	}
	code, err := c.Mac(ctx, sdk.MacRequest{Key: sdk.Name("codes"), Message: []byte("m"), Context: context})
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]bool{"phone": true, "name": false} {
		v, err := c.VerifyMac(ctx, sdk.MacRequest{Key: sdk.Index(9), Message: []byte("m"), Context: sdk.Context{"field": field}}, code.Mac, code.Version)
		if err != nil || v.Valid != want {
			t.Errorf("%s: %+v, %v", field, v, err)
		}
	}
	signed, err := c.Sign(ctx, sdk.SignRequest{Key: sdk.Index(12), Format: sdk.FormatDER})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := c.Verify(ctx, sdk.VerifyRequest{Key: sdk.Index(12), Signature: signed.Signature, Format: sdk.FormatDER, Version: signed.Version}); err != nil || !v.Valid {
		t.Errorf("%+v, %v", v, err)
	}
	jws, err := c.Sign(ctx, sdk.SignRequest{Key: sdk.Index(10), Message: []byte("{}"), Format: sdk.FormatJWS})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := c.VerifyJWS(ctx, sdk.Index(10), jws.JWS); err != nil || !v.Valid || string(v.Payload) != "{}" {
		t.Errorf("%+v, %v", v, err)
	}
	if random, err := c.Random(ctx, 100); err != nil || len(random) != 100 {
		t.Errorf("%d bytes, %v", len(random), err)
	}
}

// A key made elsewhere goes in wrapped, and works as itself.
func TestImportCommand(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.createApp("im", "127.0.0.1/32", "keys=1-99;ops="+allOps+",mac")
	raw := bytes.Repeat([]byte{0x17, 0x71}, 16)
	var begun struct {
		ID        string `json:"id"`
		PublicKey string `json:"public_key"`
	}
	s.ok("key", "import", "begin", "-o", "json").json(t, &begun)
	public, _ := pem.Decode([]byte(begun.PublicKey))
	if public == nil {
		t.Fatalf("%+v", begun)
	}
	file := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(file, hsmtest.Blob(t, public.Bytes, raw), 0o600); err != nil {
		t.Fatal(err)
	}
	finish := []string{"key", "import", "finish", "--id", begun.ID, "--in", file, "--index", "9", "--name", "partner", "--purpose", "mac", "--exportable", "-o", "json"}
	var made struct {
		KCV        string `json:"kcv"`
		Purpose    string `json:"purpose"`
		Exportable bool   `json:"exportable"`
		Versions   []struct{ Imported bool }
	}
	s.ok(finish...).json(t, &made)
	if kcv, _ := alg.KCV(raw); made.KCV != kcv || made.Purpose != "mac" || !made.Exportable || !made.Versions[0].Imported {
		t.Errorf("%+v", made)
	}
	want := hmac.New(sha256.New, raw)
	want.Write([]byte("m"))
	if a := s.good("/v1/keys/partner/mac", object{"message": b64("m")}); !bytes.Equal(a.bytes("mac"), want.Sum(nil)) {
		t.Errorf("%s", a.raw)
	}
	finish[8], finish[10] = "10", "again"
	if r := s.run(finish...); r.code != 5 || !strings.Contains(r.err, "begin anew") {
		t.Errorf("a spent import: %+v", r)
	}
	if r := s.run("key", "create", "--purpose", "mac", "--algorithm", "aes-256-gcm"); r.code != 4 || !strings.Contains(r.err, "hmac-sha256") {
		t.Errorf("an algorithm of another purpose: %+v", r)
	}
	if r := s.run("key", "create", "--purpose", "everything"); r.code != 2 {
		t.Errorf("a purpose that is none: %+v", r)
	}
	if out := s.ok("key", "show", "9").out; !strings.Contains(out, fmt.Sprintf("key 9 %q, mac, hmac-sha256", "partner")) {
		t.Errorf("%s", out)
	}
}
