package kms_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/policy"
)

var home = netip.MustParseAddr("127.0.0.1")

// logged is what a service logs.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.buf.String(), text)
}

func apps(t *testing.T, s *kms.Service) *auth.Apps {
	t.Helper()
	a, err := s.Apps()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestSecretExpiry: a secret is warned of for two weeks, and then refused, whoever asks.
func TestSecretExpiry(t *testing.T) {
	s := newSite(t)
	var at atomic.Int64
	at.Store(time.Now().Unix())
	log := &logged{}
	service := kms.New(kms.Config{
		Machine: s.machine, Store: s.store, Log: slog.New(slog.NewTextHandler(log, nil)), TendEvery: 5 * time.Millisecond,
		Now: func() time.Time { return time.Unix(at.Load(), 0) },
	})
	t.Cleanup(func() { _ = service.Close() })
	if err := service.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := apps(t, service)
	valid, err := life.ParsePeriod("90d")
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.Create(t.Context(), "im", policy.Whitelist{netip.PrefixFrom(home, 32)}, nil, valid)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("a request")
	m := hmac.New(sha256.New, []byte(c.AppSecret))
	m.Write(message)
	sum := m.Sum(nil)
	both := func() [2]error {
		_, basic := a.Authenticate(c.AppKey, c.AppSecret, home)
		_, signed := a.AuthenticateMAC(c.AppKey, message, sum, home)
		return [2]error{basic, signed}
	}
	day := int64(24 * 60 * 60)
	at.Add(75 * day)
	if err := both(); err[0] != nil || err[1] != nil {
		t.Errorf("after 75 days: %v", err)
	}
	if list := service.SecretExpiries(); len(list) != 1 || list[0].App != "im" || list[0].Number != 1 {
		t.Errorf("expiries: %+v", list)
	}
	if log.has("expires soon") {
		t.Error("warned of too early")
	}
	at.Add(2 * day)
	eventually(t, "the log warns", func() bool { return log.has("expires soon") && log.has("app=im") })
	at.Add(13*day - 1)
	if err := both(); err[0] != nil || err[1] != nil {
		t.Errorf("in the last second: %v", err)
	}
	at.Add(1)
	for _, err := range both() {
		if !errors.Is(err, fault.Unauthorized) || !strings.Contains(err.Error(), "expired") {
			t.Errorf("after 90 days: %v", err)
		}
	}
	// Who does not have it is told nothing of that.
	if _, err := a.Authenticate(c.AppKey, "wrong", home); err == nil || strings.Contains(err.Error(), "expired") {
		t.Errorf("a wrong secret: %v", err)
	}
	eventually(t, "the log says so", func() bool { return log.has("has expired") })
}

// TestPins: a public key is one app's, on all nodes, and is so no longer when it is removed.
func TestPins(t *testing.T) {
	s := newSite(t)
	one, two := s.service(), s.service()
	s.app(one, "im")
	s.app(one, "other")
	eventually(t, "the app is known", func() bool { _, err := apps(t, two).Find("other"); return err == nil })
	pin := auth.SPKI(sha256.Sum256([]byte("a key")))
	// Two administrators at two nodes at once: one of them has it.
	var won atomic.Int32
	var wg sync.WaitGroup
	for app, node := range map[string]*kms.Service{"im": one, "other": two} {
		wg.Go(func() {
			switch err := apps(t, node).AddPin(t.Context(), app, pin); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, fault.Conflict):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d apps have it", won.Load())
	}
	who := func(node *kms.Service) string {
		c, err := apps(t, node).AuthenticatePin(pin, home)
		if err != nil {
			return ""
		}
		return c.Name
	}
	eventually(t, "both nodes know whose it is", func() bool { return who(one) != "" && who(one) == who(two) })
	owner := who(one)
	if err := apps(t, one).RemovePin(t.Context(), map[string]string{"im": "other", "other": "im"}[owner], pin); !errors.Is(err, fault.NotFound) {
		t.Errorf("removed from another app: %v", err)
	}
	if err := apps(t, one).RemovePin(t.Context(), owner, pin); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no node takes it", func() bool { return who(one) == "" && who(two) == "" })
	if err := apps(t, two).AddPin(t.Context(), "im", pin); err != nil {
		t.Errorf("added again: %v", err)
	}
}

// TestDroppedSecret: the older secret goes, on all nodes, and the newer stays.
func TestDroppedSecret(t *testing.T) {
	s := newSite(t)
	one, two := s.service(), s.service()
	first := s.app(one, "im")
	second, err := apps(t, one).RotateSecret(t.Context(), "im", 0)
	if err != nil {
		t.Fatal(err)
	}
	valid := func(node *kms.Service, c auth.Credentials) bool {
		_, err := apps(t, node).Authenticate(c.AppKey, c.AppSecret, home)
		return err == nil
	}
	eventually(t, "both are valid everywhere", func() bool {
		return valid(one, first) && valid(one, second) && valid(two, first) && valid(two, second)
	})
	if _, err := apps(t, two).DropSecret(t.Context(), "im"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first is not", func() bool { return !valid(one, first) && !valid(two, first) })
	if !valid(one, second) || !valid(two, second) {
		t.Error("the second is gone too")
	}
	if _, err := apps(t, one).DropSecret(t.Context(), "im"); !errors.Is(err, fault.Conflict) {
		t.Errorf("the last one: %v", err)
	}
}
