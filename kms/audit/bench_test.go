package audit_test

import (
	"fmt"
	"testing"

	"github.com/trikey/trikey/kms/audit"
)

// BenchmarkRecord is what one event of the data plane costs: alone, and with others.
func BenchmarkRecord(b *testing.B) {
	for _, mode := range []audit.Mode{audit.Sync, audit.Async} {
		for _, callers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/%d", mode, callers), func(b *testing.B) {
				l := open(b, b.TempDir(), newKey(b), func(c *audit.Config) { c.Data = mode })
				b.SetParallelism(callers)
				b.ReportAllocs()
				b.RunParallel(func(p *testing.PB) {
					for p.Next() {
						if err := l.Operation(event("encrypt")); err != nil {
							b.Error(err)
						}
					}
				})
				s := l.Stats()
				b.ReportMetric(float64(s.Events)/float64(max(1, s.Syncs)), "events/sync")
			})
		}
	}
}
