package policy_test

import (
	"errors"
	"math"
	"net/netip"
	"reflect"
	"testing"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/policy"
)

func ranges(t *testing.T, text string) policy.Ranges {
	t.Helper()
	r, err := policy.ParseRanges(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRanges(t *testing.T) {
	for text, want := range map[string]string{
		"7": "7", "1-99,200": "1-99,200", "200,1-99": "1-99,200", "1-5,3-9": "1-9", "1-5,6-9": "1-9", "1-5,7-9": "1-5,7-9",
		"0-4294967295": "*", "*": "*", "4294967295": "4294967295", "5,5,5": "5", " 1 , 2 ": "1-2",
	} {
		if got := ranges(t, text).String(); got != want {
			t.Errorf("%q reads as %q, want %q", text, got, want)
		}
	}
	for _, text := range []string{"", "-", "a", "9-1", "1-", "-1", "4294967296", "1,,2", "1-2-3", "+1", "1.5"} {
		if r, err := policy.ParseRanges(text); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%q reads as %v, %v", text, r, err)
		}
	}
}

// Sets behave as sets: checked against a plain map over small universes.
func TestRangesAreSets(t *testing.T) {
	texts := []string{"1", "0-3", "2-5", "7-9", "1-2,8", "3,5,7", "0,9", "*", "4294967290-4294967295"}
	points := []uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, math.MaxUint32 - 6, math.MaxUint32 - 5, math.MaxUint32}
	for _, a := range texts {
		for _, b := range texts {
			x, y := ranges(t, a), ranges(t, b)
			for _, p := range points {
				if got, want := x.Add(y).Contains(p), x.Contains(p) || y.Contains(p); got != want {
					t.Errorf("%s + %s has %d: %v", a, b, p, got)
				}
				if got, want := x.Remove(y).Contains(p), x.Contains(p) && !y.Contains(p); got != want {
					t.Errorf("%s - %s has %d: %v", a, b, p, got)
				}
			}
			if again := ranges(t, x.Add(y).String()); !reflect.DeepEqual(again, x.Add(y)) {
				t.Errorf("%s + %s prints as %s", a, b, x.Add(y))
			}
		}
	}
}

func TestGrants(t *testing.T) {
	parse := func(rule string) policy.Grants {
		t.Helper()
		g, err := policy.ParseGrants(rule)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	var none policy.Grants
	if none.Allows(policy.Encrypt, 1) || none.Sees(1) || policy.AnyOp(func(op policy.Op) bool { return none[op].All() }) {
		t.Error("no grant allows something")
	}
	g := parse("keys=1-9;ops=encrypt,decrypt").Add(parse("ops=reencrypt;keys=5"))
	if !g.Allows(policy.Encrypt, 9) || g.Allows(policy.Encrypt, 10) || g.Allows(policy.ReencryptTo, 4) || !g.Allows(policy.ReencryptFrom, 5) || !g.Sees(9) || g.Sees(10) {
		t.Errorf("%v", g)
	}
	if got := g.Strings(); !reflect.DeepEqual(got, []string{"keys=1-9;ops=encrypt,decrypt", "keys=5;ops=reencrypt-from,reencrypt-to"}) {
		t.Errorf("%q", got)
	}
	before := g.Strings()
	if g = g.Remove(parse("keys=*;ops=encrypt")); g.Allows(policy.Encrypt, 5) || !g.Allows(policy.Decrypt, 5) {
		t.Errorf("%v", g)
	}
	if len(before) != 2 || len(g.Strings()) != 2 {
		t.Errorf("%q", g.Strings())
	}
	for _, rule := range []string{"", "keys=1", "ops=encrypt", "keys=1;ops=", "keys=1;ops=fly", "keys=1;ops=encrypt;keys=2", "keys=;ops=encrypt", "x=1;keys=1;ops=encrypt", "keys=1,ops=encrypt"} {
		if got, err := policy.ParseGrants(rule); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%q reads as %v, %v", rule, got, err)
		}
	}
}

func TestWhitelist(t *testing.T) {
	var w policy.Whitelist
	for _, text := range []string{"10.1.0.0/16", "192.0.2.7", "2001:db8::/32", "::ffff:198.51.100.0/120", "10.1.2.3/16"} {
		p, err := policy.ParsePrefix(text)
		if err != nil {
			t.Fatal(err)
		}
		w = w.Add(p)
	}
	if len(w) != 4 { // 10.1.2.3/16 is 10.1.0.0/16
		t.Errorf("%v", w)
	}
	for addr, want := range map[string]bool{
		"10.1.255.255": true, "10.2.0.0": false, "192.0.2.7": true, "192.0.2.8": false, "::ffff:192.0.2.7": true, "2001:db8::1": true,
		"2001:db9::1": false, "198.51.100.255": true, "::ffff:198.51.100.1": true, "198.51.101.0": false, "::1": false, "fe80::1%eth0": false,
	} {
		if got := w.Allows(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	if (policy.Whitelist{}).Allows(netip.MustParseAddr("127.0.0.1")) || w.Allows(netip.Addr{}) {
		t.Error("nobody is allowed somewhere")
	}
	for _, text := range []string{"", "x", "10.0.0.0/33", "300.1.1.1", "10.0.0.0/8/8", "::ffff:0:0/90", "fe80::1%eth0"} {
		if p, err := policy.ParsePrefix(text); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%q reads as %v, %v", text, p, err)
		}
	}
}
