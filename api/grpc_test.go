package api_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/trikey/trikey/api"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/sdk"
)

// newStream returns an SDK's client of a gRPC listener over TLS.
func newStream(b testing.TB) *sdk.Client {
	b.Helper()
	c := newCaller(b)
	// httptest has a certificate for 127.0.0.1.
	https := httptest.NewTLSServer(nil)
	b.Cleanup(https.Close)
	roots := x509.NewCertPool()
	roots.AddCert(https.Certificate())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	metrics := api.NewMetrics(func(context.Context) (hsm.Status, error) { return hsm.Status{}, nil })
	g := api.NewGRPC(api.Config{Service: c.service, Metrics: metrics}, &tls.Config{Certificates: https.TLS.Certificates, MinVersion: tls.VersionTLS13})
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	client, err := sdk.New(sdk.Config{
		Addresses: []string{https.URL}, GRPC: []string{l.Addr().String()}, AppKey: c.AppKey, AppSecret: c.AppSecret, RootCAs: roots,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		client.Close()
		_ = g.Close()
		<-served
	})
	return client
}

// BenchmarkStream measures both ends of the gRPC stream, TLS between them, in one
// process: many callers with one message each, and one with pages of 100.
func BenchmarkStream(b *testing.B) {
	client := newStream(b)
	request := sdk.EncryptRequest{Key: sdk.Index(7), Plaintext: make([]byte, 256), Context: sdk.Context{"app": "im", "chat_type": "group", "conversation": "c-4711"}}
	sealed, err := client.Encrypt(b.Context(), request)
	if err != nil {
		b.Fatal(err)
	}
	open := sdk.DecryptRequest{Ciphertext: sealed.Ciphertext, Context: request.Context}
	callers := func(f func() error) func(*testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(512)
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if err := f(); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "items/s")
		}
	}
	b.Run("encrypt", callers(func() error { _, err := client.Encrypt(b.Context(), request); return err }))
	b.Run("decrypt", callers(func() error { _, err := client.Decrypt(b.Context(), open); return err }))
	page := make([]sdk.DecryptRequest, 100)
	for i := range page {
		page[i] = open
	}
	b.Run("decrypt100", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := client.DecryptBatch(b.Context(), page); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds(), "items/s")
	})
}

// TestStreamTogether: many callers share a stream, and give calls up; each that is answered
// has its own answer. It is here for the race detector.
func TestStreamTogether(t *testing.T) {
	client := newStream(t)
	var wg sync.WaitGroup
	for caller := range 40 {
		wg.Go(func() {
			for i := range 50 {
				text := fmt.Appendf(nil, "%d of %d", i, caller)
				ctx, cancel := context.WithCancel(t.Context())
				if i%5 == 0 {
					go cancel()
				}
				sealed, err := client.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Index(7), Plaintext: text})
				cancel()
				if errors.Is(err, context.Canceled) {
					clear(text) // it is the caller's again
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				opened, err := client.Decrypt(t.Context(), sdk.DecryptRequest{Ciphertext: sealed.Ciphertext})
				if err != nil || !bytes.Equal(opened.Plaintext, text) {
					t.Errorf("%q came back as %q, %v", text, opened.Plaintext, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
