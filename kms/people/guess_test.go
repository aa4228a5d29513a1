package people_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/fault"
)

// elsewhere is one of many addresses that somebody guesses from.
func elsewhere(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}) }

// TestCodesGuessed: codes are not guessed from many addresses: not by who knows the
// password, and not by who has a session.
func TestCodesGuessed(t *testing.T) {
	s := newSite(t)
	g := s.node()
	key := s.enrolled(g, "ann")
	s.pass(time.Minute)
	token, _, err := g.Login(t.Context(), "ann", password(t, phrase), s.code(key, 0), office)
	if err != nil {
		t.Fatal(err)
	}
	current, err := g.Session(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	s.pass(time.Minute)
	for i := range 5 {
		if _, err := g.StepUp(t.Context(), current, "x", elsewhere(i)); !errors.Is(err, fault.Unauthorized) {
			t.Fatal(err)
		}
	}
	if _, err := g.StepUp(t.Context(), current, s.code(key, 0), elsewhere(5)); err == nil {
		t.Error("a session tries as many codes as it has addresses")
	}
	if _, err := g.Session(t.Context(), token); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("the session goes on: %v", err)
	}
	for i := range 5 {
		if _, _, err := g.Login(t.Context(), "ann", password(t, phrase), "x", elsewhere(10+i)); !errors.Is(err, fault.Unauthorized) {
			t.Fatal(err)
		}
	}
	if _, _, err := g.Login(t.Context(), "ann", password(t, phrase), s.code(key, 0), elsewhere(20)); !errors.Is(err, fault.LockedOut) {
		t.Errorf("who knows the password tries codes from everywhere: %v", err)
	}
	s.pass(15 * time.Minute)
	if _, _, err := g.Login(t.Context(), "ann", password(t, phrase), s.code(key, 0), office); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestNetworks: addresses of one IPv6 network are one.
func TestNetworks(t *testing.T) {
	s := newSite(t)
	g := s.node()
	s.enrolled(g, "ann")
	try := func(from string) error {
		_, _, err := g.Login(t.Context(), "ann", password(t, "several other words"), "x", netip.MustParseAddr(from))
		return err
	}
	for i := range 5 {
		if err := try(fmt.Sprintf("2001:db8::%x", i+1)); !errors.Is(err, fault.Unauthorized) {
			t.Fatal(err)
		}
	}
	if err := try("2001:db8::ffff"); !errors.Is(err, fault.LockedOut) {
		t.Errorf("another address of the network: %v", err)
	}
	if err := try("2001:db8:0:1::1"); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("another network: %v", err)
	}
}
