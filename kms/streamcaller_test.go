package kms_test

import (
	"crypto/sha256"
	"errors"
	"net/netip"
	"testing"

	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/auth"
)

// TestStreamEndsWithItsCaller: a stream under way ends when what its caller has shown is
// withdrawn, or its address is taken off the whitelist.
func TestStreamEndsWithItsCaller(t *testing.T) {
	s, ctx := newSite(t), t.Context()
	service := s.service()
	s.create(service, 1, "chat")
	first := s.app(service, "im")
	registry, pin := apps(t, service), auth.SPKI(sha256.Sum256([]byte("a key")))
	if err := registry.AddPin(ctx, "im", pin); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Change(ctx, "im", func(a *auth.App) error { a.Grants = grants(t, "keys=1;ops=encrypt"); return nil }); err != nil {
		t.Fatal(err)
	}
	second, err := registry.RotateSecret(ctx, "im", 0)
	if err != nil {
		t.Fatal(err)
	}
	begin := func(c *auth.Caller, err error) *kms.Stream {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		stream, err := service.SealStream(c, "1", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	next := func(s *kms.Stream, counter uint32) error {
		_, err := s.Do(ctx, nil, envelope.Segment{Bytes: make([]byte, envelope.SegmentSize), Counter: counter})
		return err
	}
	older := begin(registry.Authenticate(first.AppKey, first.AppSecret, home))
	newer := begin(registry.Authenticate(second.AppKey, second.AppSecret, home))
	certified := begin(registry.AuthenticatePin(pin, home))
	for _, stream := range []*kms.Stream{older, newer, certified} {
		if err := next(stream, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := registry.DropSecret(ctx, "im"); err != nil {
		t.Fatal(err)
	}
	if err := next(older, 1); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("after its secret was dropped: %v", err)
	}
	if err := next(certified, 1); err != nil {
		t.Error(err)
	}
	if err := registry.RemovePin(ctx, "im", pin); err != nil {
		t.Fatal(err)
	}
	if err := next(certified, 2); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("after its certificate was removed: %v", err)
	}
	if err := next(newer, 1); err != nil {
		t.Error(err)
	}
	if _, err := registry.Change(ctx, "im", func(a *auth.App) error {
		a.Whitelist, _ = a.Whitelist.Remove(netip.PrefixFrom(home, 32))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := next(newer, 2); !errors.Is(err, fault.IPNotAllowed) {
		t.Errorf("after its address was denied: %v", err)
	}
}
