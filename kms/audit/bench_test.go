package audit_test

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trikey/trikey/kms/audit"
)

// used is the processor time of the process.
func used(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e3
}

// BenchmarkRecord is what one event of the data plane costs: alone, and with others.
func BenchmarkRecord(b *testing.B) {
	for _, mode := range []audit.Mode{audit.Sync, audit.Async} {
		for _, callers := range []int{2, 16, 64} {
			b.Run(fmt.Sprintf("%s/%d", mode, callers), func(b *testing.B) {
				l := open(b, b.TempDir(), newKey(b), func(c *audit.Config) { c.Data = mode })
				b.SetParallelism(max(1, callers/2)) // of two processors
				b.ReportAllocs()
				before := used(b)
				b.RunParallel(func(p *testing.PB) {
					for p.Next() {
						if err := l.Operation(event("encrypt")); err != nil {
							b.Error(err)
						}
					}
				})
				b.ReportMetric((used(b)-before)/float64(b.N), "CPU-µs/event")
				s := l.Stats()
				b.ReportMetric(float64(s.Events)/float64(max(1, s.Syncs)), "events/sync")
			})
		}
	}
}
