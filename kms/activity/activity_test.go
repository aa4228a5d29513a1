package activity_test

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trikey/trikey/kms/activity"
	"github.com/trikey/trikey/kms/alert"
)

var (
	monday = time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)
	here   = netip.MustParseAddr("192.0.2.1")
)

// watched is a tracker and what it has raised.
type watched struct {
	*activity.Tracker
	kinds []alert.Kind
}

func newWatched() *watched {
	w := &watched{}
	factor := &atomic.Int64{}
	factor.Store(activity.DefaultFactor)
	w.Tracker = activity.New(func(a alert.Alert) { w.kinds = append(w.kinds, a.Kind) }, factor)
	return w
}

func (w *watched) want(t *testing.T, when string, kinds ...alert.Kind) {
	t.Helper()
	if !slices.Equal(w.kinds, kinds) {
		t.Errorf("%s: %v, want %v", when, w.kinds, kinds)
	}
	w.kinds = nil
}

func TestAddresses(t *testing.T) {
	w := newWatched()
	w.Seen("im", here, 1, monday)
	w.want(t, "the first call", alert.NewAddress)
	w.Seen("im", here, 1, monday)
	w.Seen("im", netip.MustParseAddr("::ffff:192.0.2.1"), 1, monday)
	w.want(t, "the same address")
	w.Seen("im", netip.MustParseAddr("192.0.2.2"), 1, monday)
	w.Seen("other", here, 1, monday)
	w.want(t, "another address and another app", alert.NewAddress, alert.NewAddress)
	stored := w.Dirty()
	if len(stored) != 2 || len(stored["im"].Addresses) != 2 || w.Dirty() != nil {
		t.Errorf("%+v", stored)
	}
	after := newWatched()
	for app, p := range stored {
		after.Apply(app, p)
	}
	after.Seen("im", here, 1, monday)
	after.want(t, "after a restart")
	for i := range 10_000 {
		w.Seen("im", netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1, monday)
	}
	if n := len(w.Dirty()["im"].Addresses); n != 256 {
		t.Errorf("%d addresses are kept", n)
	}
}

// TestHours: on working days from nine to five; a call in the night is unusual once a
// week is known, and no longer afterwards.
func TestHours(t *testing.T) {
	w := newWatched()
	week := func(from time.Time) {
		for h := range 7 * 24 {
			now := from.Add(time.Duration(h) * time.Hour)
			if now.Hour() >= 9 && now.Hour() < 17 && now.Weekday() != time.Sunday {
				w.Seen("im", here, 1, now)
			}
			w.Look(now)
		}
	}
	week(monday)
	w.want(t, "the first week", alert.NewAddress)
	week(monday.AddDate(0, 0, 7))
	w.want(t, "the second")
	night := monday.AddDate(0, 0, 15).Add(18 * time.Hour)
	w.Seen("im", here, 1, night)
	w.Look(night)
	w.want(t, "at three in the night", alert.UnusualHour)
	w.Seen("im", here, 1, night.AddDate(0, 0, 7))
	w.Look(night.AddDate(0, 0, 7))
	w.want(t, "the night after a week")
}

func TestRate(t *testing.T) {
	w := newWatched()
	now := monday
	minute := func(items int) {
		now = now.Add(time.Minute)
		w.Seen("im", here, items, now)
		w.Look(now)
	}
	minute(1)
	w.kinds = nil
	for range 30 {
		minute(1000)
	}
	minute(50_000)
	w.want(t, "before an hour is known")
	for range 120 {
		minute(1000)
	}
	minute(2000)
	w.want(t, "twice as much")
	minute(50_000)
	w.want(t, "many times as much", alert.UnusualRate)

	calm := newWatched()
	for range 120 {
		now = now.Add(time.Minute)
		calm.Seen("im", here, 1, now)
		calm.Look(now)
	}
	calm.kinds = nil
	calm.Seen("im", here, 500, now)
	calm.Look(now.Add(time.Minute))
	calm.want(t, "many times nearly nothing")
}

func BenchmarkSeen(b *testing.B) {
	w := newWatched()
	b.ReportAllocs()
	for b.Loop() {
		w.Seen("im", here, 1, monday)
	}
}
