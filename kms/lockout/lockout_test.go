package lockout_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/lockout"
)

var (
	here     = netip.MustParseAddr("192.0.2.1")
	there    = netip.MustParseAddr("192.0.2.2")
	stranger = netip.MustParseAddr("203.0.113.9")
)

const app = "akaaaaaaaaaaaaaaaa"

func newLockout() (*lockout.Lockout, *time.Time) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return lockout.New(lockout.Config{Now: func() time.Time { return now }}), &now
}

func TestFive(t *testing.T) {
	l, now := newLockout()
	for i := range 5 {
		if err := l.Check(app, here); err != nil {
			t.Fatalf("after %d failures: %v", i, err)
		}
		if locked := l.Failed(app, here); locked != (i == 4) {
			t.Errorf("failure %d: locked %v", i+1, locked)
		}
	}
	err := l.Check(app, here)
	if !errors.Is(err, fault.LockedOut) || fault.RetryAfterOf(err) != 15*time.Minute {
		t.Fatalf("%v, after %s", err, fault.RetryAfterOf(err))
	}
	if err := l.Check(app, there); err != nil {
		t.Errorf("from its other address: %v", err)
	}
	*now = now.Add(15*time.Minute - 1)
	if l.Check(app, here) == nil {
		t.Error("unlocked too early")
	}
	*now = now.Add(1)
	if err := l.Check(app, here); err != nil {
		t.Errorf("after the time that was told: %v", err)
	}
	if l.Failed(app, here) || l.Check(app, here) != nil {
		t.Error("one failure after the lock locks")
	}
}

func TestSuccessAndTimeForget(t *testing.T) {
	l, now := newLockout()
	for range 10 {
		for range 4 {
			l.Failed(app, here)
		}
		l.Passed(app, here)
	}
	if err := l.Check(app, here); err != nil {
		t.Errorf("four failures at a time: %v", err)
	}
	for range 10 {
		for range 4 {
			l.Failed(app, here)
		}
		*now = now.Add(15 * time.Minute)
	}
	if err := l.Check(app, here); err != nil {
		t.Errorf("four failures in each window: %v", err)
	}
}

// TestStrangers: whatever comes from elsewhere, the app goes on from its addresses.
func TestStrangers(t *testing.T) {
	l, _ := newLockout()
	for range 100 {
		l.Failed(app, stranger)
	}
	if l.Check(app, stranger) == nil {
		t.Error("the stranger is not locked out")
	}
	if err := l.Check(app, here); err != nil {
		t.Errorf("the app is: %v", err)
	}
}

// TestManyKeys: an address that tries one AppKey after the other is refused, but for who
// has got in from there. Repeating one that does not exist is told from nothing.
func TestManyKeys(t *testing.T) {
	l, _ := newLockout()
	l.Passed(app, here)
	for i := range 5 {
		l.Failed(fmt.Sprintf("ak%016d", i), here)
	}
	if l.Check("ak9999999999999999", here) == nil {
		t.Error("the sixth AppKey is not refused")
	}
	if err := l.Check(app, here); err != nil {
		t.Errorf("an app that has got in from there: %v", err)
	}
	for range 4 {
		l.Failed("akzzzzzzzzzzzzzzzz", there)
	}
	if err := l.Check(app, there); err != nil {
		t.Errorf("one wrong AppKey refuses others: %v", err)
	}
}

func TestUnlock(t *testing.T) {
	l, _ := newLockout()
	for range 5 {
		l.Failed(app, here)
	}
	l.Unlock(app)
	if err := l.Check(app, here); err != nil {
		t.Error(err)
	}
	if l.Locks() != 1 {
		t.Errorf("%d locks", l.Locks())
	}
}

// TestBounded: what was counted first makes room.
func TestBounded(t *testing.T) {
	l := lockout.New(lockout.Config{Most: 64})
	for i := range 100_000 {
		l.Failed(app, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if n := l.Len(); n > 64 {
		t.Errorf("%d are remembered", n)
	}
}

func BenchmarkCheckAndPass(b *testing.B) {
	l := lockout.New(lockout.Config{})
	b.ReportAllocs()
	for b.Loop() {
		if l.Check(app, here) != nil {
			b.Fail()
		}
		l.Passed(app, here)
	}
}
