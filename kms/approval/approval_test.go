package approval_test

import (
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/approval"
)

// TestOnce has two nodes grant one request many times: it is granted once. What has ended is
// not granted, and neither is anything but what was seen.
func TestOnce(t *testing.T) {
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	machine := hsmtest.Open(t)
	var clock atomic.Int64
	clock.Store(2_000_000_000)
	desk := func() *approval.Desk {
		s := kms.New(kms.Config{Machine: machine, Store: store, Now: func() time.Time { return time.Unix(clock.Load(), 0) }})
		t.Cleanup(func() { _ = s.Close() })
		if err := s.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		d, err := s.Approvals()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	desks := []*approval.Desk{desk(), desk()}
	ask := func() approval.Request {
		t.Helper()
		r, err := desks[0].Ask(t.Context(), approval.Request{
			What: "destroy key 7", Method: "POST", Path: "/admin/v1/keys/7/schedule-destroy", Body: []byte(`{"days":7}`), By: "admin:ann", Person: "ann",
		}, 0)
		if err != nil || r.Expires.Sub(r.Created) != approval.MaxLife {
			t.Fatal(r, err)
		}
		return r
	}
	r := ask()
	if _, err := desks[1].Grant(t.Context(), r.ID, r.Digest(), "admin:ann", "ann"); !errors.Is(err, fault.Forbidden) {
		t.Errorf("by who has asked: %v", err)
	}
	changed := r
	changed.Body = []byte(`{"days":30}`)
	if _, err := desks[1].Grant(t.Context(), r.ID, changed.Digest(), "officer:oz", "oz"); !errors.Is(err, fault.Conflict) {
		t.Errorf("another body: %v", err)
	}
	var wg sync.WaitGroup
	var granted atomic.Int32
	for i := range 8 {
		wg.Go(func() {
			_, err := desks[i%2].Grant(t.Context(), r.ID, r.Digest(), "officer:oz", "oz")
			if err == nil {
				granted.Add(1)
			} else if !errors.Is(err, fault.Conflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if granted.Load() != 1 {
		t.Errorf("granted %d times", granted.Load())
	}
	if got, err := desks[1].Find(t.Context(), r.ID); err != nil || got.State != approval.Granted || got.Digest() != r.Digest() {
		t.Errorf("between grant and end: %+v, %v", got, err)
	}
	if got, err := desks[1].End(t.Context(), r.ID, "conflict"); err != nil || got.State != approval.Failed {
		t.Errorf("end: %+v, %v", got, err)
	}
	if _, err := desks[0].End(t.Context(), r.ID, "ok"); !errors.Is(err, fault.Conflict) {
		t.Errorf("ended twice: %v", err)
	}

	r = ask()
	if _, err := desks[1].Refuse(t.Context(), r.ID, "no", "officer:oz"); err != nil {
		t.Fatal(err)
	}
	if _, err := desks[0].Grant(t.Context(), r.ID, r.Digest(), "officer:oz", "oz"); !errors.Is(err, fault.Conflict) {
		t.Errorf("after a refusal: %v", err)
	}
	r = ask()
	clock.Add(int64(approval.MaxLife / time.Second))
	if _, err := desks[0].Grant(t.Context(), r.ID, r.Digest(), "officer:oz", "oz"); !errors.Is(err, fault.Conflict) {
		t.Errorf("a day later: %v", err)
	}
	if got, err := desks[0].Find(t.Context(), r.ID); err != nil || got.State != approval.Expired {
		t.Errorf("a day later: %+v, %v", got, err)
	}
	clock.Add(40 * 24 * 3600)
	ask()
	if all, err := desks[0].List(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("forty days later there are %d: %v", len(all), err)
	}
}
