package limit

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/trikey/trikey/internal/fault"
)

// Rate is how much is allowed: so many items a second in the long run, and so many at
// once. The zero value allows everything.
type Rate struct {
	Items float64 `json:"items"` // a second
	Burst int     `json:"burst"`
}

// None is how the rate that allows everything is written.
const None = "none"

const maxItems = 1e9

// ParseRate reads items=500/s,burst=1000. Without a burst that is one second's items.
func ParseRate(text string) (Rate, error) {
	var r Rate
	if text = strings.TrimSpace(text); text == "" || text == None {
		return r, nil
	}
	bad := func() (Rate, error) {
		return Rate{}, fault.New(fault.BadRequest, "%q is not a rate like items=500/s,burst=1000, or %s", text, None)
	}
	for part := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		var err error
		switch name {
		case "items":
			value, _ = strings.CutSuffix(value, "/s")
			if r.Items, err = strconv.ParseFloat(value, 64); err != nil || !(r.Items > 0 && r.Items <= maxItems) {
				return bad()
			}
		case "burst":
			if r.Burst, err = strconv.Atoi(value); err != nil || r.Burst < 1 || r.Burst > maxItems {
				return bad()
			}
		default:
			return bad()
		}
	}
	if r.Items == 0 {
		return bad()
	}
	if r.Burst == 0 {
		r.Burst = int(math.Ceil(r.Items))
	}
	return r, nil
}

// String writes the rate as ParseRate reads it.
func (r Rate) String() string {
	if r.Items == 0 {
		return None
	}
	return fmt.Sprintf("items=%s/s,burst=%d", strconv.FormatFloat(r.Items, 'f', -1, 64), r.Burst)
}
