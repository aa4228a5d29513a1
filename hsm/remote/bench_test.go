package remote_test

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/hsm/remote"
)

// used is the processor time of the process, both ends of the wire.
func used(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e3
}

// BenchmarkHop is an encryption of 256 bytes in the process, and over both wires, by so
// many callers at a time.
func BenchmarkHop(b *testing.B) {
	e := hsmtest.Open(b)
	key, err := e.GenerateKey(b.Context(), hsm.Binding{Index: 7, Version: 1, Algorithm: alg.AES256GCM, Purpose: hsm.PurposeSeal})
	if err != nil {
		b.Fatal(err)
	}
	overSocket, _ := overUnix(b, remote.ServerConfig{Machine: e})
	for _, over := range []struct {
		name string
		hsm.Machine
	}{{"process", e}, {"unix", overSocket}, {"mTLS", overTLS(b, remote.ServerConfig{Machine: e})}} {
		for _, shape := range []struct{ callers, batch int }{{1, 1}, {16, 1}, {64, 1}, {16, 100}} {
			b.Run(fmt.Sprintf("%s/c=%d/batch=%d", over.name, shape.callers, shape.batch), func(b *testing.B) {
				input := bytes.Repeat([]byte{'x'}, 256)
				b.SetParallelism(max(1, shape.callers/2)) // of two processors
				before := used(b)
				b.RunParallel(func(p *testing.PB) {
					ops := make([]hsm.Op, shape.batch)
					for p.Next() {
						for i := range ops {
							ops[i] = hsm.Op{Kind: hsm.Encrypt, Key: key.Wrapped, Input: input, Output: ops[i].Output[:0]}
						}
						if err := over.Do(b.Context(), ops); err != nil || ops[0].Err != nil {
							b.Error(err, ops[0].Err)
						}
					}
				})
				b.ReportMetric((used(b)-before)/float64(b.N*shape.batch), "CPU-µs/item")
			})
		}
	}
}
