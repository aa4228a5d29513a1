package kms_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/life"
)

const day = life.Period(24 * time.Hour)

// TestYear is a year of daily rotation with seven days of retention: what was sealed six
// days ago opens, what was sealed nine days ago does not, but for a key on legal hold; and
// versions do not pile up.
func TestYear(t *testing.T) {
	s := newSite(t)
	c, sign := newClock(), newSigner(t)
	service, ctx, app := s.stepped(c, sign), t.Context(), anyone(t)
	daily := kms.Settings{Rotate: day, Retain: 7 * day}
	for index, name := range map[uint32]string{7: "daily", 8: "held"} {
		if _, err := service.CreateKey(ctx, "test", kms.NewKey{Index: index, Name: name, Algorithm: alg.AES256GCM, Settings: daily}); err != nil {
			t.Fatal(err)
		}
	}
	sealed := map[string][][]byte{"7": nil, "8": nil}
	most, fewest := 0, 1000
	const holdFrom, holdTo = 100, 150
	for today := range 365 {
		var err error
		switch today {
		case holdFrom:
			_, err = service.HoldKey(ctx, "test", 8, "case 4711")
		case holdTo:
			_, err = service.ReleaseKey(ctx, "test", 8)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := service.Tend(ctx); err != nil {
			t.Fatal(err)
		}
		for key := range sealed {
			message, err := seal(ctx, service, app, key)
			if err != nil {
				t.Fatal(err)
			}
			sealed[key] = append(sealed[key], message)
			for _, age := range []int{0, 6, 9} {
				if age > today {
					continue
				}
				want := fault.Code("")
				held := key == "8" && today >= holdFrom && today < holdTo && today-age >= holdFrom-8
				if age == 9 && !held {
					want = fault.KeyDestroyed
				}
				if err := open(ctx, service, app, sealed[key][today-age]); fault.CodeOf(err) != want {
					t.Fatalf("day %d, key %s: opening what is %d days old: %v, want %q", today, key, age, err, want)
				}
			}
		}
		k, _ := service.FindKey("7")
		live := 0
		for _, v := range k.Versions {
			if v.State != life.Destroyed {
				live++
			}
		}
		if most = max(most, live); today > 10 {
			fewest = min(fewest, live)
		}
		if spans := k.Opens(); today > 10 && (len(spans) != 1 || !spans[0].Until.IsZero() || c.now().Sub(spans[0].From) != 7*24*time.Hour) {
			t.Fatalf("day %d: messages that open: %v", today, spans)
		}
		c.days(1)
	}
	if most != 8 || fewest != 8 {
		t.Errorf("between %d and %d versions were live", fewest, most)
	}
	for key, index := range map[string]uint32{"7": 7, "8": 8} {
		all, err := service.Certificates(ctx, index)
		if err != nil || len(all) != 365-8 {
			t.Fatalf("key %s: %d certificates: %v", key, len(all), err)
		}
		var released int
		for i, cert := range all {
			if cert.Version != uint32(i+1) || cert.Why != "retention of 7d" || cert.State != "deactivated" ||
				!cert.SealUntil.Equal(cert.SealFrom.AddDate(0, 0, 1)) || cert.Destroyed.Before(cert.SealUntil.AddDate(0, 0, 7)) {
				t.Fatalf("key %s: %+v", key, cert)
			}
			if strings.HasPrefix(cert.Hold, "released 2026-05-31") {
				released++
			}
		}
		if held := key == "8"; held != (released > 0) {
			t.Errorf("key %s: %d certificates tell of a hold", key, released)
		}
	}
	// A second node reads the same.
	k, err := s.stepped(c, sign).FindKey("8")
	if err != nil || k.Newest().Version != 365 || len(k.Versions) != 100+8 {
		t.Errorf("version %d of %d: %v", k.Newest().Version, len(k.Versions), err)
	}
}

// After many destructions the record lists the last of them; the others are told of
// by their certificates, and stay destroyed.
func TestForgotten(t *testing.T) {
	s := newSite(t)
	c := newClock()
	service, ctx, app := s.stepped(c, newSigner(t)), t.Context(), anyone(t)
	hourly := kms.Settings{Rotate: life.MinPeriod, Retain: life.MinPeriod}
	if _, err := service.CreateKey(ctx, "test", kms.NewKey{Index: 7, Algorithm: alg.AES256GCM, Settings: hourly}); err != nil {
		t.Fatal(err)
	}
	first, err := seal(ctx, service, app, "7")
	if err != nil {
		t.Fatal(err)
	}
	for range 150 {
		c.add(time.Hour)
		if _, err := service.Tend(ctx); err != nil {
			t.Fatal(err)
		}
	}
	k, err := service.FindKey("7")
	if err != nil || k.Newest().Version != 151 || len(k.Versions) != 102 || k.Forgotten != 49 {
		t.Errorf("version %d, %d listed, %d forgotten: %v", k.Newest().Version, len(k.Versions), k.Forgotten, err)
	}
	for _, service := range []*kms.Service{service, s.stepped(c, nil)} {
		if err := open(ctx, service, app, first); !errors.Is(err, fault.KeyDestroyed) {
			t.Error(err)
		}
		if _, err := service.CompromiseKey(ctx, "test", 7, 1); !errors.Is(err, fault.KeyDestroyed) {
			t.Error(err)
		}
		if all, err := service.Certificates(ctx, 7); err != nil || len(all) != 149 {
			t.Errorf("%d certificates: %v", len(all), err)
		}
	}
}

// One node does what is due; when it goes away in the middle, another does after the
// lease; and what cannot be certified is not destroyed.
func TestElected(t *testing.T) {
	s := newSite(t)
	c, sign := newClock(), newSigner(t)
	a, b, ctx := s.stepped(c, sign), s.stepped(c, sign), t.Context()
	for i := range uint32(3) {
		settings := kms.Settings{Rotate: day, Retain: day}
		if _, err := a.CreateKey(ctx, "test", kms.NewKey{Index: i + 1, Algorithm: alg.AES256GCM, Settings: settings}); err != nil {
			t.Fatal(err)
		}
	}
	step := func(service *kms.Service, want kms.Tended) {
		t.Helper()
		if done, err := service.Tend(ctx); err != nil || done != want {
			t.Errorf("%+v, want %+v: %v", done, want, err)
		}
	}
	same := func() {
		t.Helper()
		eventually(t, "both nodes have the same", func() bool {
			for _, ref := range []string{"1", "2", "3"} {
				ka, errA := a.FindKey(ref)
				kb, errB := b.FindKey(ref)
				if errA != nil || errB != nil || len(ka.Versions) != len(kb.Versions) || ka.Versions[0].State != kb.Versions[0].State {
					return false
				}
			}
			return true
		})
	}
	same()
	step(b, kms.Tended{}) // nothing is due: nobody stands
	c.days(1)
	step(a, kms.Tended{Elected: true, Rotated: 3})
	same()
	c.add(time.Minute)
	step(b, kms.Tended{})
	if _, err := s.store.Get(ctx, "lease/steward"); err != nil {
		t.Errorf("the lease: %v", err)
	}
	c.days(1)
	step(b, kms.Tended{Elected: true, Rotated: 3, Destroyed: 3})
	same()
	// The other one does not while b holds the lease, though all is due.
	if _, err := a.ChangeKey(ctx, "test", 1, func(s *kms.Settings) error { s.Rotate = life.MinPeriod; return nil }); err != nil {
		t.Fatal(err)
	}
	c.add(2 * time.Minute)
	if _, err := b.Tend(ctx); err != nil {
		t.Fatal(err)
	}
	// b dies; its lease runs out.
	c.days(1)
	sign.broken = true
	done, err := a.Tend(ctx)
	if !errors.Is(err, fault.ChipFault) || !done.Elected || done.Rotated != 3 || done.Destroyed != 0 {
		t.Errorf("with a signer that fails: %+v %v", done, err)
	}
	for _, ref := range []string{"1", "2", "3"} {
		if k, err := a.FindKey(ref); err != nil || k.Versions[1].Wrapped == "" || k.Versions[1].State != life.Deactivated {
			t.Errorf("key %s lost a version that nothing certifies: %v", ref, err)
		}
	}
	sign.broken = false
	step(b, kms.Tended{}) // a holds the lease
	step(a, kms.Tended{Elected: true, Destroyed: 3})
	if err := a.Close(); err != nil { // gives the lease up
		t.Fatal(err)
	}
	if _, err := s.store.Get(ctx, "lease/steward"); !errors.Is(err, keystore.ErrNotFound) {
		t.Errorf("the lease of a service that ended: %v", err)
	}
}

// A certificate is checked with nothing but its JSON, by the book: canonical JSON without
// the members of the signature.
func TestCertificate(t *testing.T) {
	s := newSite(t)
	c, sign := newClock(), newSigner(t)
	service, ctx := s.stepped(c, sign), t.Context()
	s.create(service, 7, "chat")
	if _, err := service.ScheduleDestroy(ctx, "test", 7, 0, 7); err != nil {
		t.Fatal(err)
	}
	c.days(7)
	if done, err := service.Tend(ctx); err != nil || done.Destroyed != 1 {
		t.Fatalf("%+v %v", done, err)
	}
	all, err := service.Certificates(ctx, 7)
	if err != nil || len(all) != 1 {
		t.Fatal(err)
	}
	raw, err := json.Marshal(all[0])
	if err != nil {
		t.Fatal(err)
	}
	var plain map[string]any
	if err := json.Unmarshal(raw, &plain); err != nil {
		t.Fatal(err)
	}
	if plain["why"] != "ordered, with the whole key" || plain["hold"] != "none" || plain["destroyed"] != "2026-01-08T09:00:00Z" || plain["state"] != "suspended" {
		t.Errorf("%s", raw)
	}
	for _, name := range []string{"public_key", "fingerprint", "signature"} {
		if _, ok := plain[name]; !ok {
			t.Errorf("no %s in %s", name, raw)
		}
		delete(plain, name)
	}
	message, err := json.Marshal(plain) // sorts the members, as RFC 8785 does
	if err != nil {
		t.Fatal(err)
	}
	if err := all[0].Signature.Check("destruction", message, ""); err != nil {
		t.Errorf("%v: %s", err, message)
	}
	for name, alter := range map[string]func(*kms.Certificate){
		"version":   func(c *kms.Certificate) { c.Version++ },
		"time":      func(c *kms.Certificate) { c.Destroyed = c.Destroyed.Add(time.Second) },
		"hold":      func(c *kms.Certificate) { c.Hold = "released" },
		"signature": func(c *kms.Certificate) { c.Signature = &hsm.Signature{} },
		"unsigned":  func(c *kms.Certificate) { c.Signature = nil },
	} {
		altered := all[0]
		alter(&altered)
		if err := altered.Check(""); !errors.Is(err, fault.RecordDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := all[0].Check(hsm.Fingerprint([]byte("another"))); !errors.Is(err, fault.RecordDamaged) {
		t.Errorf("another machine's: %v", err)
	}
}

// TestCounts: operations are counted exactly, over restarts and on several nodes, without a
// write for each; a key is rotated when it has sealed often enough.
func TestCounts(t *testing.T) {
	s := newSite(t)
	c := newClock()
	ctx, app := t.Context(), anyone(t)
	a, b := s.stepped(c, nil), s.stepped(c, nil)
	s.create(a, 7, "chat")
	eventually(t, "the other node knows the key", func() bool { _, err := b.FindKey("7"); return err == nil })
	before, _ := s.store.Txn(ctx, nil, nil)
	var message []byte
	for range 100 {
		for _, n := range []*kms.Service{a, b} {
			var err error
			if message, err = seal(ctx, n, app, "7"); err != nil {
				t.Fatal(err)
			}
		}
		if err := open(ctx, a, app, message); err != nil {
			t.Fatal(err)
		}
	}
	_ = open(ctx, a, app, append(message[:len(message):len(message)], 0)) // what fails is not counted
	if after, _ := s.store.Txn(ctx, nil, nil); after != before {
		t.Errorf("300 operations made %d transactions", after-before)
	}
	use := func(n *kms.Service) string {
		k, err := n.FindKey("7")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(k.Use())
	}
	if got, want := use(a), "[{7 1 100 100 2026-01-01 09:00:00 +0000 UTC}]"; got != want {
		t.Errorf("before anything is written: %s, want %s", got, want)
	}
	mine := 0
	a.Uses(func(u kms.Use) { mine += int(u.Seals + u.Opens) })
	if mine != 200 {
		t.Errorf("the metrics count %d", mine)
	}
	c.days(1)
	a.Unload()
	const want = "[{7 1 200 100 2026-01-01 09:00:00 +0000 UTC}]"
	eventually(t, "b learns of a's", func() bool { return use(b) == want })
	b.Unload()
	if err := errors.Join(a.Load(ctx), b.Load(ctx)); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*kms.Service{a, b} {
		if got := use(n); got != want {
			t.Errorf("after a restart: %s, want %s", got, want)
		}
	}
	after, _ := s.store.Txn(ctx, nil, nil)
	if after != before+2 {
		t.Errorf("the counts of two nodes made %d transactions", after-before)
	}
	if _, err := a.ChangeKey(ctx, "test", 7, func(s *kms.Settings) error { s.RotateAfter = 210; return nil }); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if k, _ := a.FindKey("7"); k.Newest().Version != 1 {
			t.Errorf("rotated after %d", i)
		}
		if _, err := seal(ctx, a, app, "7"); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "rotated by count", func() bool { k, err := a.FindKey("7"); return err == nil && k.Newest().Version == 2 })
	eventually(t, "once, on both nodes", func() bool { k, err := b.FindKey("7"); return err == nil && k.Newest().Version == 2 })
	if err := open(ctx, b, app, message); err != nil {
		t.Error(err)
	}
}

// TestManyCounts: the counts of more keys than one transaction of the store takes.
func TestManyCounts(t *testing.T) {
	s := newSite(t)
	service, app := s.service(), anyone(t)
	const n = 2*keystore.MaxTxn + 1
	for i := range uint32(n) {
		k := s.create(service, i+1, "")
		if _, err := seal(t.Context(), service, app, k.Name); err != nil {
			t.Fatal(err)
		}
	}
	service.Unload()
	if err := service.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	keys, err := service.ListKeys()
	if err != nil || len(keys) != n {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for _, k := range keys {
		if use := k.Use(); len(use) != 1 || use[0].Seals != 1 {
			t.Fatalf("key %d: %+v", k.Index, use)
		}
	}
}
