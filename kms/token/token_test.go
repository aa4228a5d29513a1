package token_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/token"
)

const issuer = "https://keys.example.com"

// keys sign with a key of their own: what the machine would never be given to sign is
// signed rightly here.
type keys struct {
	private ed25519.PrivateKey
	ended   time.Time
}

func (k *keys) jws(header, payload string) string {
	text := base64.RawURLEncoding.EncodeToString
	input := text([]byte(header)) + "." + text([]byte(payload))
	return input + "." + text(ed25519.Sign(k.private, []byte(input)))
}

func (k *keys) Sign(_ context.Context, typ string, payload []byte) (string, error) {
	return k.jws(`{"alg":"EdDSA","kid":"9.1","typ":"`+typ+`"}`, string(payload)), nil
}

func (k *keys) Public(id string) (ed25519.PublicKey, time.Time, bool) {
	public, _ := k.private.Public().(ed25519.PublicKey)
	return public, k.ended, id == "9.1"
}

func newAuthority(t testing.TB) (*token.Authority, *keys) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	k := &keys{private: private}
	cfg := token.Config{Issuer: issuer}.Filled()
	if err := cfg.Check(); err != nil {
		t.Fatal(err)
	}
	return token.New(cfg, k, nil, time.Now), k
}

// A right signature is not enough: each claim and header parameter must be as it is
// issued.
func TestClaims(t *testing.T) {
	a, k := newAuthority(t)
	m, err := a.Mint(t.Context(), token.Request{Class: token.App, ClientID: "akx"})
	if err != nil {
		t.Fatal(err)
	}
	part, err := base64.RawURLEncoding.DecodeString(strings.Split(m.Token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	payload := string(part)
	header := `{"alg":"EdDSA","kid":"9.1","typ":"at+jwt"}`
	if _, err := a.Verify(k.jws(header, payload)); err != nil {
		t.Fatalf("as it is issued: %v", err)
	}
	change := func(old, changed string) string {
		t.Helper()
		if !strings.Contains(payload, old) {
			t.Fatalf("%s has no %s", payload, old)
		}
		return strings.Replace(payload, old, changed, 1)
	}
	for what, changed := range map[string]string{
		"another issuer":        change(`"iss":"`+issuer+`"`, `"iss":"https://other.example.com"`),
		"no issuer":             change(`"iss":"`+issuer+`",`, ``),
		"another audience":      change(`"aud":"`+issuer+`"`, `"aud":"https://other.example.com"`),
		"several audiences":     change(`"aud":"`+issuer+`"`, `"aud":["`+issuer+`","x"]`),
		"an unknown class":      change(`"cls":"app"`, `"cls":"root"`),
		"no class":              change(`,"cls":"app"`, ``),
		"a class twice":         change(`"cls":"app"`, `"cls":"app","cls":"admin"`),
		"an admin's of an app":  change(`"cls":"app"`, `"cls":"admin"`),
		"a user's of no talk":   change(`"cls":"app"`, `"cls":"user"`),
		"an unknown operation":  change(`"scope":"crypto"`, `"scope":"everything"`),
		"no scope":              change(`"scope":"crypto"`, `"scope":""`),
		"a class in capitals":   change(`"cls"`, `"CLS"`),
		"no id":                 change(`"jti":"`+m.ID+`"`, `"jti":""`),
		"no client":             change(`"client_id":"akx",`, ``),
		"an end that is text":   change(`"exp":`, `"exp":"x","old":`),
		"an end as a fraction":  change(`"exp":`, `"exp":1e30,"old":`),
		"a negative end":        change(`"exp":`, `"exp":-`),
		"a long life":           change(`"exp":1`, `"exp":9`),
		"no JSON":               "app",
		"a list":                "[" + payload + "]",
		"more after it":         payload + payload,
		"keys that are no keys": change(`"scope"`, `"keys":"all","scope"`),
	} {
		if _, err := a.Verify(k.jws(header, changed)); !errors.Is(err, fault.Unauthorized) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, changed := range map[string]string{
		"another typ":          `{"alg":"EdDSA","kid":"9.1","typ":"JWT"}`,
		"no typ":               `{"alg":"EdDSA","kid":"9.1"}`,
		"another key id":       `{"alg":"EdDSA","kid":"9.2","typ":"at+jwt"}`,
		"another algorithm":    `{"alg":"Ed25519","kid":"9.1","typ":"at+jwt"}`,
		"another parameter":    `{"alg":"EdDSA","kid":"9.1","typ":"at+jwt","x":1}`,
		"a nonce":              `{"alg":"EdDSA","kid":"9.1","typ":"at+jwt","nonce":"x"}`,
		"a critical one":       `{"alg":"EdDSA","kid":"9.1","typ":"at+jwt","crit":["x"],"x":1}`,
		"a key id twice":       `{"alg":"EdDSA","kid":"9.2","typ":"at+jwt","kid":"9.1"}`,
		"a name in capitals":   `{"alg":"EdDSA","KID":"9.1","typ":"at+jwt"}`,
		"an algorithm no text": `{"alg":["EdDSA"],"kid":"9.1","typ":"at+jwt"}`,
	} {
		if _, err := a.Verify(k.jws(changed, payload)); !errors.Is(err, fault.Unauthorized) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A version that had ceased to sign before did not issue it.
	k.ended = time.Now().Add(-time.Hour)
	if _, err := a.Verify(m.Token); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("of a version that had ceased to sign: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []token.Config{
		{Issuer: "http://keys.example.com"},
		{Issuer: "https://keys.example.com/"},
		{Issuer: "https://keys.example.com/path"},
		{Issuer: "https://keys.example.com?x"},
		{Issuer: "keys"},
		{Issuer: "https://u@keys.example.com"},
		{AppTTL: 61 * time.Minute},
		{AppTTL: time.Second},
		{UserTTL: 25 * time.Hour},
		{AdminTTL: 3 * time.Hour},
	} {
		if err := c.Filled().Check(); !errors.Is(err, fault.BadConfig) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	off := token.New(token.Config{}.Filled(), nil, nil, time.Now)
	if _, err := off.Mint(t.Context(), token.Request{Class: token.App}); !errors.Is(err, fault.Forbidden) {
		t.Errorf("%v", err)
	}
	if _, err := off.Verify("x.y.z"); !errors.Is(err, fault.Forbidden) {
		t.Errorf("%v", err)
	}
}

// FuzzVerify: whatever arrives is refused in the one way, or is the token that was issued.
func FuzzVerify(f *testing.F) {
	a, _ := newAuthority(f)
	m, err := a.Mint(f.Context(), token.Request{Class: token.App, ClientID: "akx"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.Token)
	for _, s := range []string{"", "..", "a.b.c", m.Token + ".", "{}", m.Token[:len(m.Token)-1]} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, compact string) {
		got, err := a.Verify(compact)
		if err != nil && !errors.Is(err, fault.Unauthorized) || err == nil && got.ID != m.ID {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

// BenchmarkVerify is what a token costs each call that has it: the first, and those after.
func BenchmarkVerify(b *testing.B) {
	a, _ := newAuthority(b)
	m, err := a.Mint(b.Context(), token.Request{Class: token.App, ClientID: "akx"})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("again", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := a.Verify(m.Token); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("first", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := a.Inspect(m.Token); err != nil {
				b.Fatal(err)
			}
		}
	})
}
