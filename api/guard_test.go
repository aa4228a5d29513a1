package api_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/trikey/trikey/kms/alert"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/budget"
	"github.com/trikey/trikey/kms/guard"
	"github.com/trikey/trikey/kms/limit"
	"github.com/trikey/trikey/kms/lockout"
)

// BenchmarkGuard is the cost of what callers are held to: nothing at all; the default, a
// lockout without rates; all three rates and a budget. The variants take turns, so that
// each has the same share of whatever else the machine does.
func BenchmarkGuard(b *testing.B) {
	rate := limit.Rate{Items: 1e9, Burst: 1e9}
	variants := map[string]func() *guard.Guard{
		"nothing": func() *guard.Guard { return nil },
		"default": func() *guard.Guard {
			return &guard.Guard{Limits: limit.New(limit.Config{}), Lockout: lockout.New(lockout.Config{})}
		},
		"all": func() *guard.Guard {
			return &guard.Guard{
				Limits:  limit.New(limit.Config{Rates: limit.Rates{App: rate, Address: rate, Key: rate}}),
				Lockout: lockout.New(lockout.Config{}), Alerts: alert.New(alert.Config{}),
			}
		},
	}
	callers := map[string]*caller{}
	for name, g := range variants {
		held := g()
		callers[name] = newCallerHeld(b, held)
		if held != nil {
			b.Cleanup(held.Alerts.Close)
		}
		apps, err := callers[name].service.Apps()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := apps.Change(b.Context(), "im", func(app *auth.App) error {
			if name == "all" {
				app.Budget = &budget.Budget{Items: 1e9, Conversations: 1e6}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	body := fmt.Appendf(nil, `{"plaintext":%q,%s}`, base64.StdEncoding.EncodeToString(make([]byte, 256)), binding)
	took := map[string]time.Duration{}
	for b.Loop() {
		for name, c := range callers {
			start := time.Now()
			for range 20 {
				if w := c.post("/v1/keys/7/encrypt", body); w.Code != http.StatusOK {
					b.Fatal(w.Body)
				}
			}
			took[name] += time.Since(start)
		}
	}
	for name, d := range took {
		b.ReportMetric(float64(d.Nanoseconds())/float64(20*b.N), "ns/"+name)
	}
}
