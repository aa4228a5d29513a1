package audit_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"log/slog"
	"testing"
	"time"

	"github.com/trikey/trikey/kms/audit"
)

// key signs as a machine does.
type key struct{ private ed25519.PrivateKey }

func newKey(t testing.TB) key {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key{private}
}

func (k key) AuditKey(context.Context) (ed25519.PublicKey, error) {
	return k.private.Public().(ed25519.PublicKey), nil
}

func (k key) SignAudit(_ context.Context, text []byte) ([]byte, error) {
	return ed25519.Sign(k.private, text), nil
}

// open opens a log that signs only when it is asked to.
func open(t testing.TB, dir string, k audit.Signer, change ...func(*audit.Config)) *audit.Log {
	t.Helper()
	cfg := audit.Config{Dir: dir, Signer: k, Interval: time.Hour, Every: 1 << 40, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&cfg)
	}
	l, err := audit.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func event(op string) audit.Event {
	return audit.Event{Kind: audit.Data, Op: op, Actor: "im", Address: "10.0.0.1", Key: 7, Version: 1, Items: 1, Outcome: audit.OK}
}
