package command

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/kms"
)

// TestCertified destroys a key with the parts of a real node, under a clock that is set
// forward: the machine's identity, which its chip holds, signs the certificate.
func TestCertified(t *testing.T) {
	ctx := t.Context()
	d, err := setUp(ctx, filepath.Join(t.TempDir(), "site"), 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNode(ctx, d.cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	for i, id := range d.ids {
		if _, err := n.desk.Present(ctx, id, d.pins[i]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.service.CreateKey(ctx, "test", kms.NewKey{Index: 7, Algorithm: alg.AES256GCM}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.service.ScheduleDestroy(ctx, "test", 7, 0, kms.MinDestroyDays); err != nil {
		t.Fatal(err)
	}
	later := kms.New(kms.Config{Machine: n.engine, Store: n.store, Signer: n, Now: func() time.Time {
		return time.Now().AddDate(0, 0, kms.MinDestroyDays)
	}})
	t.Cleanup(func() { _ = later.Close() })
	if err := later.Load(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := later.Tend(ctx); err != nil { // or its own steward was faster
		t.Fatal(err)
	}
	own, err := n.Sign(ctx, "test", []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		all, err := n.service.Certificates(ctx, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 1 {
			if err := all[0].Check(own.Fingerprint); err != nil {
				t.Error(err)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the key is not destroyed")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
