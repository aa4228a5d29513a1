package p11_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// TestCourier: a key that one chip sends is in the other and can be used there, by that
// receiver only, and not once that is closed.
func TestCourier(t *testing.T) {
	ctx := t.Context()
	from, to := hsmtest.NewChip(t), hsmtest.NewChip(t)
	receivers := make([]hsm.Receiver, 2)
	for i := range receivers {
		var err error
		if receivers[i], err = to.NewReceiver(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Equal(receivers[0].Public(), receivers[1].Public()) {
		t.Fatal("two receivers have one key")
	}
	key, err := secret.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := from.Send(ctx, receivers[0].Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	here, err := from.Load(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, 12)
	_, _ = rand.Read(nonce)
	sealed, err := here.Seal(ctx, nonce, key, []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	there, err := receivers[0].Receive(ctx, wrapped)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := there.Open(ctx, nonce, sealed, []byte("aad"))
	if err != nil || !opened.Equal(key) {
		t.Errorf("opened by the receiver: %v", err)
	}
	if _, err := there.Open(ctx, nonce, sealed, []byte("other")); !errors.Is(err, fault.DecryptFailed) {
		t.Errorf("other additional data: %v", err)
	}
	if _, err := receivers[1].Receive(ctx, wrapped); !errors.Is(err, fault.ChipFault) {
		t.Errorf("another receiver: %v", err)
	}
	if err := errors.Join(there.Close(), receivers[0].Close()); err != nil {
		t.Error(err)
	}
	if _, err := receivers[0].Receive(ctx, wrapped); !errors.Is(err, fault.ChipFault) {
		t.Errorf("a receiver that is closed: %v", err)
	}
	short, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&short.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, receiver := range map[string][]byte{"none": nil, "no key": []byte("key"), "2048 bits": der} {
		if _, err := from.Send(ctx, receiver, key); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
