package life_test

import (
	"errors"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/life"
)

// Every pair of states: a + where NIST SP 800-57 part 1, section 7 has a transition.
func TestTransitions(t *testing.T) {
	table := []struct {
		from life.State
		to   string // in the order of States
	}{
		{life.PreActive, "-+--++"},
		{life.Active, "--++++"},
		{life.Suspended, "-+-+++"},
		{life.Deactivated, "----++"},
		{life.Compromised, "-----+"},
		{life.Destroyed, "------"},
		{"", "------"},
		{"unknown", "------"},
	}
	for _, row := range table {
		for i, to := range life.States() {
			want := row.to[i] == '+'
			got, err := row.from.To(to)
			if row.from.May(to) != want || (err == nil) != want {
				t.Errorf("%q to %q: %v; want %v", row.from, to, err, want)
			}
			if want && got != to || !want && (got != row.from || !errors.Is(err, fault.Conflict)) {
				t.Errorf("%q to %q ends at %q (%v)", row.from, to, got, err)
			}
		}
		if row.from.May("") || row.from.May("unknown") {
			t.Errorf("%q may become what is no state", row.from)
		}
	}
	if len(table) != len(life.States())+2 {
		t.Error("a state is not in the table")
	}
}

func TestPeriod(t *testing.T) {
	for text, want := range map[string]struct {
		length time.Duration
		again  string
	}{
		"24h": {24 * time.Hour, "24h"}, "1d": {24 * time.Hour, "24h"}, "7d": {168 * time.Hour, "7d"}, "168h": {168 * time.Hour, "7d"},
		"90d": {2160 * time.Hour, "90d"}, "1h": {time.Hour, "1h"}, "25h": {25 * time.Hour, "25h"}, "36500d": {876000 * time.Hour, "36500d"},
	} {
		p, err := life.ParsePeriod(text)
		if err != nil || time.Duration(p) != want.length || p.String() != want.again {
			t.Errorf("%s: %s, %v", text, p, err)
		}
		var back life.Period
		if raw, err := p.MarshalText(); err != nil || back.UnmarshalText(raw) != nil || back != p {
			t.Errorf("%s comes back as %s", text, back)
		}
	}
	for _, text := range []string{"", "0h", "0d", "7", "d", "-1d", "1.5d", "7 d", "7D", "1w", "59m", "36501d", "999999d", "99999999999d", "7d7h", "７d"} {
		if p, err := life.ParsePeriod(text); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%q: %s, %v", text, p, err)
		}
	}
}
