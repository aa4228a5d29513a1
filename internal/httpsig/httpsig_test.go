package httpsig

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/fault"
)

var now = time.Unix(1_800_000_000, 0)

var key = Key{ID: "akaaaaaaaaaaaaaaaa", Secret: []byte("not a secret of anybody")}

// arrived is a request as a server sees it.
func arrived(url, body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, url, strings.NewReader(body))
	r.RequestURI = r.URL.RequestURI()
	return r
}

// signed is a signed request as it arrives.
func signed(t *testing.T, body string) *http.Request {
	t.Helper()
	r := arrived("https://trikey.example:7443/v1/keys/7/encrypt?a=b", body)
	r.Header.Set("Content-Type", "application/json")
	if err := Sign(r, []byte(body), key, now); err != nil {
		t.Fatal(err)
	}
	return r
}

func mac(secret, base []byte) []byte {
	m := hmac.New(sha256.New, secret)
	m.Write(base)
	return m.Sum(nil)
}

// verify is what a verifier does.
func verify(r *http.Request) error {
	s, err := Parse(r)
	if err != nil {
		return err
	}
	if err := s.Fresh(now); err != nil {
		return err
	}
	if !hmac.Equal(mac(key.Secret, s.Base), s.MAC) {
		return fault.SignatureInvalid
	}
	r.Body = s.Body(r.Body)
	_, err = io.ReadAll(r.Body)
	return err
}

// TestVector is that of RFC 9421, section B.2.5.
func TestVector(t *testing.T) {
	secret, err := base64.StdEncoding.DecodeString("uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==")
	if err != nil {
		t.Fatal(err)
	}
	r := arrived("https://example.com/foo?param=Value&Pet=dog", "")
	r.Header.Set("Date", "Tue, 20 Apr 2021 02:07:55 GMT")
	r.Header.Set("Content-Type", "application/json")
	base, err := signatureBase(r, []string{"date", "@authority", "content-type"}, `("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"`)
	if err != nil {
		t.Fatal(err)
	}
	if got := base64.StdEncoding.EncodeToString(mac(secret, base)); got != "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=" {
		t.Errorf("%s over\n%s", got, base)
	}
}

// TestDigestVector is that of RFC 9530, section B.1 (sha-256 of {"hello": "world"} and a line end).
func TestDigestVector(t *testing.T) {
	const want = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
	if got := Digest([]byte("{\"hello\": \"world\"}\n")); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestSigned(t *testing.T) {
	for _, body := range []string{"", `{"plaintext":"aGk="}`, strings.Repeat("x", 1<<20)} {
		if err := verify(signed(t, body)); err != nil {
			t.Errorf("%d bytes: %v", len(body), err)
		}
	}
}

// set replaces in a header.
func set(name, old, replacement string) func(*http.Request) {
	return func(r *http.Request) {
		text := strings.Join(r.Header.Values(name), ", ")
		if old != "" && !strings.Contains(text, old) {
			panic(name + " has no " + old)
		}
		r.Header.Set(name, strings.Replace(text, old, replacement, 1))
	}
}

// TestRefused: whatever is altered, missing, said twice or not known is refused.
func TestRefused(t *testing.T) {
	at := func(created time.Time) string { return "created=" + strconv.FormatInt(created.Unix(), 10) }
	other := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, alter := range map[string]func(*http.Request){
		"method":                   func(r *http.Request) { r.Method = http.MethodPut },
		"path":                     func(r *http.Request) { r.RequestURI = "/v1/keys/8/encrypt?a=b" },
		"query":                    func(r *http.Request) { r.RequestURI = "/v1/keys/7/encrypt?a=c" },
		"host":                     func(r *http.Request) { r.Host = "other.example:7443" },
		"absolute target":          func(r *http.Request) { r.RequestURI = "https://trikey.example:7443/v1/keys/7/encrypt?a=b" },
		"body":                     func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{"plaintext":"bm8="}`)) },
		"shorter body":             func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(`{`)) },
		"no digest":                func(r *http.Request) { r.Header.Del(HeaderDigest) },
		"two digests":              func(r *http.Request) { r.Header.Add(HeaderDigest, Digest([]byte("x"))) },
		"weak digest":              set(HeaderDigest, "sha-256", "md5"),
		"digest uncovered":         set(HeaderInput, ` "content-digest"`, ""),
		"method uncovered":         set(HeaderInput, `"@method" `, ""),
		"URI uncovered":            set(HeaderInput, ` "@target-uri"`, ` "@path"`),
		"octet stream":             func(r *http.Request) { r.Header.Set("Content-Type", "application/octet-stream") },
		"own field added":          func(r *http.Request) { r.Header.Set("Trikey-Context", "e30=") },
		"order":                    set(HeaderInput, `"@method" "@target-uri"`, `"@target-uri" "@method"`),
		"component twice":          set(HeaderInput, `"@method"`, `"@method" "@method"`),
		"component of the answer":  set(HeaderInput, `"@method"`, `"@method" "@status"`),
		"component with parameter": set(HeaderInput, `"@method"`, `"@method";req`),
		"absent field":             set(HeaderInput, `"@method"`, `"@method" "x-nobody"`),
		"upper case field":         set(HeaderInput, `"@method"`, `"@method" "Content-Type"`),
		"other label":              set(HeaderInput, "trikey=", "sig1="),
		"second label":             set(HeaderInput, "trikey=", `sig1=("@method");created=1, trikey=`),
		"label twice":              set(HeaderInput, "trikey=", `trikey=("@method");created=1, trikey=`),
		"second line":              func(r *http.Request) { r.Header.Add(HeaderInput, r.Header.Get(HeaderInput)) },
		"no signature":             func(r *http.Request) { r.Header.Del(HeaderSignature) },
		"no input":                 func(r *http.Request) { r.Header.Del(HeaderInput) },
		"signature twice":          func(r *http.Request) { r.Header.Add(HeaderSignature, r.Header.Get(HeaderSignature)) },
		"other signature":          func(r *http.Request) { r.Header.Set(HeaderSignature, "trikey=:"+other+":") },
		"short signature":          func(r *http.Request) { r.Header.Set(HeaderSignature, "trikey=:AAAA:") },
		"signature's parameter":    func(r *http.Request) { r.Header.Set(HeaderSignature, r.Header.Get(HeaderSignature)+";a") },
		"not a dictionary":         func(r *http.Request) { r.Header.Set(HeaderInput, `trikey=("@method`) },
		"token, no string":         set(HeaderInput, `"@method"`, `method`),
		"too long":                 set(HeaderInput, `nonce="`, `nonce="`+strings.Repeat("n", 5000)),
		"other algorithm":          set(HeaderInput, `alg="hmac-sha256"`, `alg="none"`),
		"algorithm twice":          set(HeaderInput, `alg="hmac-sha256"`, `alg="hmac-sha256";alg="none"`),
		"unknown parameter":        set(HeaderInput, `;alg=`, `;tag="x";alg=`),
		"other key":                set(HeaderInput, key.ID, "akbbbbbbbbbbbbbbbb"),
		"no key":                   set(HeaderInput, `;keyid="`+key.ID+`"`, ""),
		"no nonce":                 set(HeaderInput, ";nonce=", ";expires="),
		"short nonce":              set(HeaderInput, `;nonce="`, `;nonce="a";expires="`),
		"no time":                  set(HeaderInput, ";"+at(now), ""),
		"time as string":           set(HeaderInput, at(now), `created="now"`),
		"other time":               set(HeaderInput, at(now), at(now.Add(time.Second))),
		"spaces":                   set(HeaderInput, `" "`, `"  "`),
	} {
		r := signed(t, `{"plaintext":"aGk="}`)
		alter(r)
		if err := verify(r); !errors.Is(err, fault.SignatureInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFresh(t *testing.T) {
	s, err := Parse(signed(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	for off, good := range map[time.Duration]bool{
		0: true, Window: true, -Window: true, Window + time.Second: false, -Window - time.Second: false, 365 * 24 * time.Hour: false,
	} {
		if err := s.Fresh(now.Add(off)); (err == nil) != good {
			t.Errorf("%s: %v", off, err)
		}
	}
	s.expires = now.Add(time.Second)
	if err := errors.Join(s.Fresh(now)); err != nil {
		t.Error(err)
	}
	if err := s.Fresh(now.Add(time.Second)); !errors.Is(err, fault.SignatureInvalid) {
		t.Errorf("expired: %v", err)
	}
}

// TestCoveredFields: what tells how the body is taken is covered where there is any.
func TestCoveredFields(t *testing.T) {
	body := []byte("raw")
	r := arrived("https://trikey.example/v1/keys/7/encrypt", string(body))
	r.Header.Set("Content-Type", octetStream)
	r.Header.Set("Trikey-Algorithm", "sm4-gcm")
	if err := Sign(r, body, key, now); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{`"content-type"`, `"trikey-algorithm"`, `"content-digest"`} {
		if !strings.Contains(r.Header.Get(HeaderInput), name) {
			t.Errorf("%s is not in %s", name, r.Header.Get(HeaderInput))
		}
	}
	r.Header.Set("Trikey-Algorithm", "aes-256-gcm")
	if err := verify(r); !errors.Is(err, fault.SignatureInvalid) {
		t.Error(err)
	}
}

// FuzzParse: whatever a caller sends, there is an answer, and what is taken was written in
// one way only.
func FuzzParse(f *testing.F) {
	r := arrived("https://trikey.example/v1/x", "x")
	if err := Sign(r, []byte("x"), key, now); err != nil {
		f.Fatal(err)
	}
	f.Add(r.Header.Get(HeaderInput), r.Header.Get(HeaderSignature), r.Header.Get(HeaderDigest))
	f.Fuzz(func(t *testing.T, input, signature, digest string) {
		r := arrived("https://trikey.example/v1/x", "x")
		r.Header[HeaderInput], r.Header[HeaderSignature], r.Header[HeaderDigest] = []string{input}, []string{signature}, []string{digest}
		s, err := Parse(r)
		if err != nil {
			if !errors.Is(err, fault.SignatureInvalid) {
				t.Error(err)
			}
			return
		}
		if !bytes.HasSuffix(s.Base, []byte(strings.TrimPrefix(strings.Trim(input, " \t"), Label+"="))) {
			t.Errorf("signed is not what was sent:\n%s\n%s", input, s.Base)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	r := arrived("https://trikey.example/v1/x", "x")
	if err := Sign(r, []byte("x"), key, now); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(r); err != nil {
			b.Fatal(err)
		}
	}
}
