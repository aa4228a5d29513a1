package life

import (
	"regexp"
	"strconv"
	"time"

	"github.com/trikey/trikey/internal/fault"
)

// Period is a length of time in an operator's terms, like 24h, 7d or 180d. A day is 24
// hours.
type Period time.Duration

// Bounds of a period. The service looks once a minute what is due.
const (
	MinPeriod = Period(time.Hour)
	MaxPeriod = 36500 * day
)

const day = Period(24 * time.Hour)

var periodForm = regexp.MustCompile(`^([0-9]{1,6})([hd])$`)

// ParsePeriod reads a number of hours (24h) or days (7d).
func ParsePeriod(text string) (Period, error) {
	parts := periodForm.FindStringSubmatch(text)
	if parts == nil {
		return 0, fault.New(fault.BadRequest, "%q is not a number of hours or days, like 24h or 7d", text)
	}
	n, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil {
		return 0, err
	}
	unit := day
	if parts[2] == "h" {
		unit = Period(time.Hour)
	}
	p := Period(n) * unit
	if p < MinPeriod || p > MaxPeriod {
		return 0, fault.New(fault.BadRequest, "%q is not from %s to %s", text, MinPeriod, MaxPeriod)
	}
	return p, nil
}

// String writes the period as ParsePeriod reads it: whole days as days, but for one.
func (p Period) String() string {
	if p > day && p%day == 0 {
		return strconv.FormatInt(int64(p/day), 10) + "d"
	}
	return strconv.FormatInt(int64(p/Period(time.Hour)), 10) + "h"
}

// After returns the moment that is a period after t.
func (p Period) After(t time.Time) time.Time { return t.Add(time.Duration(p)) }

// MarshalText writes the period.
func (p Period) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (p *Period) UnmarshalText(text []byte) (err error) {
	*p, err = ParsePeriod(string(text))
	return err
}
