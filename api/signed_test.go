package api_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/httpsig"
	"github.com/trikey/trikey/kms/auth"
)

// credential is a way to make a request the app's.
type credential struct {
	name string
	add  func(r *http.Request, body []byte)
}

// credentials are all ways, by an AppKey that may be another than the app's.
func (c *caller) credentials(t testing.TB, appKey string) []credential {
	t.Helper()
	return []credential{
		{"basic", func(r *http.Request, _ []byte) { r.SetBasicAuth(appKey, c.AppSecret) }},
		{"signature", func(r *http.Request, body []byte) {
			if err := httpsig.Sign(r, body, httpsig.Key{ID: appKey, Secret: []byte(c.AppSecret)}, time.Now()); err != nil {
				t.Error(err)
			}
		}},
	}
}

// certificate is one of the app's, as a connection carries it.
func (c *caller) certificate(t testing.TB) credential {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	apps, err := c.service.Apps()
	if err == nil {
		err = apps.AddPin(t.Context(), "im", auth.SPKI(sha256.Sum256(leaf.RawSubjectPublicKeyInfo)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return credential{"certificate", func(r *http.Request, _ []byte) {
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
	}}
}

// request is an encryption of 256 bytes, as it arrives.
func request(body []byte) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/v1/keys/7/encrypt", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	return r
}

// BenchmarkCredential is what a request costs by each kind of credential, the signature's
// with the write of its nonce, which calls at the same time share. Making the signature is
// not counted.
func BenchmarkCredential(b *testing.B) {
	c := newCaller(b)
	body := fmt.Appendf(nil, `{"plaintext":%q,%s}`, base64.StdEncoding.EncodeToString(make([]byte, 256)), binding)
	for _, way := range append(c.credentials(b, c.AppKey), c.certificate(b)) {
		for _, callers := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/c=%d", way.name, callers), func(b *testing.B) {
				requests := make([]*http.Request, b.N)
				for i := range requests {
					requests[i] = request(body)
					way.add(requests[i], body)
				}
				next := make(chan *http.Request, len(requests))
				for _, r := range requests {
					next <- r
				}
				b.ReportAllocs()
				b.SetParallelism(callers)
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						w := httptest.NewRecorder()
						if c.handler.ServeHTTP(w, <-next); w.Code != http.StatusOK {
							b.Error(w.Body)
						}
					}
				})
			})
		}
	}
}

// TestTiming reports how long a refusal takes of an AppKey that is known, with a wrong
// secret, and of one that nobody has. It asserts nothing about time: whether two medians
// differ by more than noise is for people to judge.
func TestTiming(t *testing.T) {
	c := newCaller(t)
	c.AppSecret = "wrong"
	body := []byte(`{"plaintext":"aGk="}`)
	const rounds = 2000
	known, unknown := c.credentials(t, c.AppKey), c.credentials(t, "akzzzzzzzzzzzzzzzz")
	for i := range known {
		took := [2][]time.Duration{}
		for range rounds {
			for side, way := range []credential{known[i], unknown[i]} {
				r := request(body)
				way.add(r, body)
				w := httptest.NewRecorder()
				start := time.Now()
				c.handler.ServeHTTP(w, r)
				took[side] = append(took[side], time.Since(start))
				if w.Code != http.StatusUnauthorized {
					t.Fatalf("%s: %d %s", way.name, w.Code, w.Body)
				}
			}
		}
		for side := range took {
			slices.Sort(took[side])
		}
		quantile := func(side, percent int) time.Duration { return took[side][rounds*percent/100] }
		t.Logf("%-9s  known AppKey, wrong secret: median %v (quartiles %v to %v);  unknown AppKey: median %v (%v to %v)", known[i].name,
			quantile(0, 50), quantile(0, 25), quantile(0, 75), quantile(1, 50), quantile(1, 25), quantile(1, 75))
	}
}
