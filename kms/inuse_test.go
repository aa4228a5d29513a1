package kms_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/census"
)

// TestCensusKeeps follows orders to destroy that a census crosses: before the order and after
// it, cleared by a newer census, overridden with a reason; and retention, which no census
// delays.
func TestCensusKeeps(t *testing.T) {
	s := newSite(t)
	c := newClock()
	service, ctx := s.stepped(c, newSigner(t)), t.Context()
	for index, settings := range map[uint32]kms.Settings{7: {}, 8: {Retain: 7 * day}} {
		if _, err := service.CreateKey(ctx, "test", kms.NewKey{Index: index, Algorithm: alg.AES256GCM, Settings: settings}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := service.RotateKey(ctx, "test", index); err != nil {
				t.Fatal(err)
			}
		}
	}
	save := func(name string, uses ...census.Use) error {
		return service.SaveCensus(ctx, "test", name, census.Census{Made: c.now(), Keys: uses})
	}
	tend := func(want int, code error) {
		t.Helper()
		if done, err := service.Tend(ctx); done.Destroyed != want || !errors.Is(err, code) {
			t.Errorf("destroyed %d, %v; want %d, %v", done.Destroyed, err, want, code)
		}
	}
	uses := []census.Use{{Key: 7, Version: 1, Ciphertexts: 3}, {Key: 7, Version: 2, Streams: 1}, {Key: 8, Version: 1, Ciphertexts: 9}}
	if err := save("messages", uses...); err != nil {
		t.Fatal(err)
	}
	for _, version := range []uint32{0, 1, 2} {
		_, err := service.ScheduleDestroy(ctx, "test", 7, version, 7)
		if !errors.Is(err, fault.KeyInUse) || !strings.Contains(err.Error(), "messages") {
			t.Errorf("version %d: %v", version, err)
		}
	}
	// Version 3 is not in use when its destruction is ordered, but is when it is due.
	if _, err := service.ScheduleDestroy(ctx, "test", 7, 3, 7); err != nil {
		t.Fatal(err)
	}
	if err := save("archive", census.Use{Key: 7, Version: 3, Ciphertexts: 1}); err != nil {
		t.Fatal(err)
	}
	c.days(7)
	tend(3, fault.KeyInUse) // what retention destroys of key 8, in use or not
	c.add(time.Minute)
	if err := save("archive"); err != nil {
		t.Fatal(err)
	}
	tend(1, nil)
	if err := service.SaveCensus(ctx, "test", "archive", census.Census{Made: c.now().Add(-time.Hour)}); !errors.Is(err, fault.Conflict) {
		t.Errorf("an older census: %v", err)
	}

	// With a reason it is destroyed though it is in use, and the certificate has the reason.
	if _, err := service.OrderDestroy(ctx, "test", 7, kms.DestroyOrder{Version: 1, Days: 7, EvenIfUsed: "line\nbreak"}); !errors.Is(err, fault.BadRequest) {
		t.Errorf("%v", err)
	}
	order := kms.DestroyOrder{Version: 1, Days: 7, EvenIfUsed: "court order 12"}
	if _, err := service.OrderDestroy(ctx, "test", 7, order); err != nil {
		t.Fatal(err)
	}
	// An order that was taken back takes its reason with it.
	if k, err := service.CancelDestroy(ctx, "test", 7, 1); err != nil || k.Version(1).Marks.EvenIfUsed != "" {
		t.Errorf("%v", err)
	}
	if _, err := service.OrderDestroy(ctx, "test", 7, order); err != nil {
		t.Fatal(err)
	}
	c.days(7)
	tend(1, nil)
	all, err := service.Certificates(ctx, 7)
	if err != nil || len(all) != 2 || all[0].Why != "ordered, even if used: court order 12" || all[1].Why != "ordered" {
		t.Errorf("%+v, %v", all, err)
	}
	// Forgetting the census ends what it keeps.
	if _, err := service.ScheduleDestroy(ctx, "test", 7, 0, 7); !errors.Is(err, fault.KeyInUse) {
		t.Errorf("%v", err)
	}
	if err := service.ForgetCensus(ctx, "test", "messages"); err != nil {
		t.Fatal(err)
	}
	if _, err := service.ScheduleDestroy(ctx, "test", 7, 0, 7); err != nil {
		t.Error(err)
	}
}
