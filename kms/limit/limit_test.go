package limit_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/limit"
)

// clock is a time that a test moves.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func newClock() *clock { return &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

var here = netip.MustParseAddr("192.0.2.1")

func TestRates(t *testing.T) {
	for text, want := range map[string]string{
		"items=5/s,burst=10": "items=5/s,burst=10", "items=0.5/s": "items=0.5/s,burst=1", "items=1e3": "items=1000/s,burst=1000",
		"none": "none", "": "none", " burst=3 , items=2/s": "items=2/s,burst=3",
	} {
		if r, err := limit.ParseRate(text); err != nil || r.String() != want {
			t.Errorf("%q: %v, %v; want %s", text, r, err, want)
		}
	}
	for _, text := range []string{"5", "items=0", "items=-1/s", "items=x", "burst=5", "items=NaN", "items=Inf", "items=1e10", "items=5/m", "items=5,burst=0", "items=5,more=1"} {
		if r, err := limit.ParseRate(text); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%q is the rate %v, %v", text, r, err)
		}
	}
}

func rate(t *testing.T, text string) limit.Rate {
	t.Helper()
	r, err := limit.ParseRate(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestApp(t *testing.T) {
	c := newClock()
	l := limit.New(limit.Config{Rates: limit.Rates{App: rate(t, "items=10/s,burst=20")}, Now: c.now})
	if err := l.Take("im", nil, here, 20); err != nil {
		t.Fatal(err)
	}
	err := l.Take("im", nil, here, 5)
	if !errors.Is(err, fault.RateLimited) || fault.RetryAfterOf(err) != 500*time.Millisecond {
		t.Fatalf("an empty bucket: %v, after %s", err, fault.RetryAfterOf(err))
	}
	if err := l.Take("other", nil, here, 5); err != nil {
		t.Errorf("another app: %v", err)
	}
	c.t = c.t.Add(fault.RetryAfterOf(err))
	if err := l.Take("im", nil, here, 5); err != nil {
		t.Errorf("after the time that was told: %v", err)
	}
	own := rate(t, "items=1000/s")
	_ = l.Take("im", &own, here, 1) // what is in the bucket stays when the rate is changed
	c.t = c.t.Add(time.Second)
	if err := l.Take("im", &own, here, 900); err != nil {
		t.Errorf("its own rate: %v", err)
	}
	if none := rate(t, "none"); l.Take("im", &none, here, 1e6) != nil {
		t.Error("an app without a rate is held to one")
	}
	if n := l.Refused(); n.App < 1 || n.Address != 0 || n.Key != 0 {
		t.Errorf("%+v", n)
	}
}

// TestLargeBatch: a batch of more than the burst passes once, and is paid for.
func TestLargeBatch(t *testing.T) {
	c := newClock()
	l := limit.New(limit.Config{Rates: limit.Rates{App: rate(t, "items=10/s,burst=10")}, Now: c.now})
	if err := l.Take("im", nil, here, 105); err != nil {
		t.Fatal(err)
	}
	err := l.Take("im", nil, here, 1)
	if got := fault.RetryAfterOf(err).Round(time.Millisecond); got != 9600*time.Millisecond {
		t.Errorf("95 too many and 1 are paid for after %s, want 9.6 s", got)
	}
}

func TestAddressAndKey(t *testing.T) {
	c := newClock()
	l := limit.New(limit.Config{Rates: limit.Rates{Address: rate(t, "items=1/s,burst=10"), Key: rate(t, "items=1/s,burst=2")}, Now: c.now})
	mapped := netip.MustParseAddr("::ffff:192.0.2.1")
	for _, from := range []netip.Addr{here, mapped} {
		if err := l.Arrive(from); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Take("im", nil, here, 9); err != nil { // 8 besides the request itself
		t.Fatal(err)
	}
	if err := l.Arrive(mapped); !errors.Is(err, fault.RateLimited) {
		t.Errorf("::ffff:192.0.2.1 is another address than 192.0.2.1: %v", err)
	}
	if err := l.Arrive(netip.MustParseAddr("192.0.2.2")); err != nil {
		t.Errorf("the next address: %v", err)
	}
	for i := range 10 { // one network of IPv6
		_ = l.Arrive(netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i)))
	}
	if l.Arrive(netip.MustParseAddr("2001:db8::ffff")) == nil || l.Arrive(netip.MustParseAddr("2001:db8:0:1::1")) != nil {
		t.Error("IPv6 is not counted by networks")
	}
	for i := range 3 {
		if err := l.TakeKey(7); errors.Is(err, fault.RateLimited) != (i == 2) {
			t.Errorf("operation %d of key 7: %v", i+1, err)
		}
	}
	if err := l.TakeKey(8); err != nil {
		t.Errorf("key 8: %v", err)
	}
	if err := (*limit.Limits)(nil).Take("im", nil, here, 1e6); err != nil {
		t.Error(err)
	}
}

// TestBounded: any number of callers takes a bounded number of buckets.
func TestBounded(t *testing.T) {
	c := newClock()
	l := limit.New(limit.Config{Rates: limit.Rates{App: rate(t, "items=1/s,burst=1")}, Now: c.now, Most: 64})
	for i := range 10_000 {
		if err := l.Take(fmt.Sprint(i), nil, here, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Take("9999", nil, here, 1); err == nil {
		t.Error("the newest bucket was not kept")
	}
}

// TestNothingIsAllocated where callers keep to their rate.
func TestNothingIsAllocated(t *testing.T) {
	all := rate(t, "items=1e9/s")
	l := limit.New(limit.Config{Rates: limit.Rates{App: all, Address: all, Key: all}})
	call := func() {
		if err := errors.Join(l.Arrive(here), l.Take("im", nil, here, 2), l.TakeKey(7)); err != nil {
			t.Fatal(err)
		}
	}
	call()
	if n := testing.AllocsPerRun(1000, call); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTake(b *testing.B) {
	r := limit.Rate{Items: 1e9, Burst: 1e9}
	for name, rates := range map[string]limit.Rates{"off": {}, "app": {App: r}, "all": {App: r, Address: r, Key: r}} {
		b.Run(name, func(b *testing.B) {
			l := limit.New(limit.Config{Rates: rates})
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if l.Arrive(here) != nil || l.Take("im", nil, here, 1) != nil || l.TakeKey(7) != nil {
						b.Fail()
					}
				}
			})
		})
	}
}
