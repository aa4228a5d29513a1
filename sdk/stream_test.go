package sdk_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/trikey/trikey/sdk"
)

// A stream that does not say that it is complete is not, however well it ends.
func TestStreamEnds(t *testing.T) {
	result := ""
	f := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, `{"index":7}`)
			return
		}
		if r.Header.Get("Trikey-Result") != "trailer" || r.Header.Get("Trikey-Context") != "eyJmaWxlIjoiMSJ9" || r.URL.Path != "/v1/stream/7/encrypt" {
			t.Errorf("%s %v", r.URL, r.Header)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if result != "" {
			w.Header().Set("Trailer", "Trikey-Result")
		}
		_, _ = io.WriteString(w, "sealed")
		switch result {
		case "abort":
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "":
		default:
			w.Header().Set("Trikey-Result", result)
		}
	})
	c := newClient(t, f)
	for _, test := range []struct {
		result string
		want   error
	}{
		{"ok", nil},
		{"", sdk.ErrUnavailable},
		{"abort", sdk.ErrUnavailable},
		{"decrypt_failed", sdk.ErrDecryptFailed},
		{"sealed", sdk.ErrSealed},
	} {
		result = test.result
		r, err := c.EncryptStream(t.Context(), sdk.StreamRequest{Key: sdk.Index(7), Context: sdk.Context{"file": "1"}}, strings.NewReader("plain"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if !errors.Is(err, test.want) || test.want == nil && err != nil || string(got) != "sealed" {
			t.Errorf("%q: %q, %v", test.result, got, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Of several addresses one that serves is chosen before anything is read.
func TestStreamFailover(t *testing.T) {
	sealed := newFake(t, refuse(503, "sealed"))
	open := newFake(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Trikey-Result")
		_, _ = io.Copy(w, r.Body)
		w.Header().Set("Trikey-Result", "ok")
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, `{"index":7}`)
		}
	})
	c := newClient(t, sealed, open)
	r, err := c.EncryptStream(t.Context(), sdk.StreamRequest{Key: sdk.Index(7)}, strings.NewReader("plain"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if got, err := io.ReadAll(r); err != nil || string(got) != "plain" {
		t.Errorf("%q, %v", got, err)
	}
	if sealed.calls.Load() != 1 {
		t.Errorf("the sealed one was called %d times", sealed.calls.Load())
	}
	source := strings.NewReader("plain")
	if _, err := newClient(t, sealed).EncryptStream(t.Context(), sdk.StreamRequest{Key: sdk.Index(7)}, source); !errors.Is(err, sdk.ErrSealed) || source.Len() != 5 {
		t.Errorf("%v, %d bytes left", err, source.Len())
	}
}
