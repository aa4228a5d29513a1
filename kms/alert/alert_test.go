package alert_test

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/kms/alert"
)

var quietly = slog.New(slog.DiscardHandler)

func secretOf(t *testing.T, text string) *secret.Bytes {
	t.Helper()
	s, err := secret.Move([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Wipe)
	return s
}

// TestOnce: what is alike is told once in a quarter of an hour.
func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := alert.New(alert.Config{Log: quietly})
		defer a.Close()
		for range 100 {
			a.Raise(alert.Alert{Kind: alert.NewAddress, App: "im", Address: "192.0.2.1"})
			a.Raise(alert.Alert{Kind: alert.NewAddress, App: "im", Address: "192.0.2.2"})
		}
		if n := a.Stats().Raised[alert.NewAddress]; n != 2 {
			t.Errorf("%d alerts, want 2", n)
		}
		time.Sleep(15 * time.Minute)
		a.Raise(alert.Alert{Kind: alert.NewAddress, App: "im", Address: "192.0.2.1"})
		if n := a.Stats().Raised[alert.NewAddress]; n != 3 {
			t.Errorf("%d alerts, want 3", n)
		}
		for i := range 100_000 { // strangers cannot have it remember everything
			a.Raise(alert.Alert{Kind: alert.LockedOut, Address: fmt.Sprint(i)})
		}
		if n := a.Stats().Raised[alert.LockedOut]; n > 5000 {
			t.Errorf("%d alerts", n)
		}
	})
}

func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := alert.New(alert.Config{Log: quietly})
		defer a.Close()
		a.SetBurst(10)
		from := netip.MustParseAddr("192.0.2.1")
		for range 10 { // nine a minute
			for range 9 {
				a.Failure(from)
			}
			time.Sleep(time.Minute)
		}
		if n := a.Stats().Raised[alert.FailureBurst]; n != 0 {
			t.Errorf("nine failures a minute are %d bursts", n)
		}
		for range 10 {
			a.Failure(from)
		}
		if n := a.Stats().Raised[alert.FailureBurst]; n != 1 {
			t.Errorf("ten failures are %d bursts", n)
		}
	})
}

// TestQueue: nobody takes alerts; they wait, and the rest is dropped and counted, while
// nobody who raises one is held up. Close ends it.
func TestQueue(t *testing.T) {
	down := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusInternalServerError)
	}))
	defer down.Close()
	roots := x509.NewCertPool()
	roots.AddCert(down.Certificate())
	w, err := alert.NewWebhook(down.URL, roots, secretOf(t, alert.SecretPrefix+base64.StdEncoding.EncodeToString(make([]byte, 32))))
	if err != nil {
		t.Fatal(err)
	}
	a := alert.New(alert.Config{Log: quietly, Again: func(int) time.Duration { return time.Hour }})
	a.SetWebhook(w)
	for i := range 1000 {
		a.Raise(alert.Alert{Kind: alert.LockedOut, Address: fmt.Sprint(i)})
	}
	s := a.Stats()
	if s.Raised[alert.LockedOut] != 1000 || s.Dropped < 700 || s.Waiting > 256 {
		t.Errorf("%+v", s)
	}
	a.Close()
	var none *alert.Alerts
	none.Raise(alert.Alert{})
	none.Failure(netip.Addr{})
	none.Close()
}

func TestBadWebhooks(t *testing.T) {
	good := alert.SecretPrefix + base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, test := range map[string]struct{ url, secret string }{
		"plain HTTP":     {"http://example.org/", good},
		"no prefix":      {"https://example.org/", good[len(alert.SecretPrefix):]},
		"short":          {"https://example.org/", alert.SecretPrefix + "AAAA"},
		"no base64":      {"https://example.org/", alert.SecretPrefix + strings.Repeat("?", 44)},
		"longer than 64": {"https://example.org/", alert.SecretPrefix + base64.StdEncoding.EncodeToString(make([]byte, 65))},
	} {
		if _, err := alert.NewWebhook(test.url, nil, secretOf(t, test.secret)); !errors.Is(err, fault.BadConfig) || strings.Contains(err.Error(), test.secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAudit: a log that is blocked is an alert, and one that is well is none.
func TestAudit(t *testing.T) {
	a := alert.New(alert.Config{Log: quietly})
	defer a.Close()
	a.Audit(nil)
	a.Audit(fault.New(fault.Sealed, "sealed"))
	if n := a.Stats().Raised[alert.AuditBlocked]; n != 0 {
		t.Errorf("%d alerts of a log that is well", n)
	}
	a.Audit(fault.New(fault.AuditBlocked, "no room"))
	if n := a.Stats().Raised[alert.AuditBlocked]; n != 1 {
		t.Errorf("%d alerts of a blocked log", n)
	}
}
