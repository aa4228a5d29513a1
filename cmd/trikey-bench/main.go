// Command trikey-bench measures a running Trikey service from outside: operations a
// second, latencies, and the processor time that the service spends on an operation.
//
// It sets up a service as trikey demo does, and beside it an empty handler: the same
// TLS, the same bodies, no work. Every case is run in turn with all others, round
// after round, so that the machine's moods fall on all of them alike; what is printed
// is the median of the rounds, and the ratio to the empty handler of the same round.
package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// load is one case.
type load struct {
	name        string
	path        string
	body        []byte
	contentType string
	items       int // operations in one request
	empty       bool
	concurrency int
	call        func() error // of a case over gRPC, instead of path and body

	off    bool // of the service with all off that can be off
	signed bool // by RFC 9421, instead of HTTP Basic
	many   bool // of the service with many keys
	spread int  // encrypt under this many keys, at random
}

func main() {
	if os.Getenv(emptyVariable) != "" {
		fatal(serveEmpty())
		return
	}
	trikey := flag.String("trikey", "bin/trikey", "the command to measure")
	each := flag.Duration("time", 2*time.Second, "time of one case in one round")
	rounds := flag.Int("rounds", 5, "rounds")
	size := flag.Int("size", 256, "bytes of a plaintext")
	only := flag.String("only", "", "run only cases whose names have this in them, beside the empty handler")
	separate := flag.Bool("apart", false, "measure crypto machines that run apart: one, two and three, on unix sockets and over mutual TLS")
	checks := flag.Bool("checks", false, "measure what the checks and the audit cost: a service with all of them, one with all off that can be off, and an encryption without any")
	keys := flag.Int("keys", 0, "measure a service with so many keys beside one with a single key instead (1000000 takes 3 GB of disk and some minutes)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if *separate {
		fatal(runApart(ctx, *trikey, *each, *rounds, *size))
		return
	}
	if *checks {
		fatal(runChecks(ctx, *trikey, *each, *rounds, *size))
		return
	}
	if *keys > 0 {
		fatal(runMany(ctx, *trikey, *keys, *each, *rounds, *size))
		return
	}
	fatal(run(ctx, *trikey, *each, *rounds, *size, *only))
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "trikey-bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, trikey string, each time.Duration, rounds, size int, only string) (err error) {
	b, err := newBed(ctx, trikey)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	loads, err := b.loads(ctx, size)
	if err != nil {
		return err
	}
	if b.rpc, err = b.newRPC(size); err != nil {
		return err
	}
	over, err := b.rpc.calls(ctx)
	if err != nil {
		return err
	}
	loads = slices.DeleteFunc(append(loads, over...), func(l load) bool { return !l.empty && !strings.Contains(l.name, only) })
	results := make([][]result, len(loads))
	for range rounds {
		for i, l := range loads {
			r, err := b.measure(ctx, l, each)
			if err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			results[i] = append(results[i], r)
		}
	}
	print(loads, results, size)
	return nil
}

const binding = `"context":{"app":"im","chat_type":"group","conversation":"c-4711"}`

// bodies are those of an encryption, and of a batch of 100.
func bodies(size int) (single, batch []byte) {
	plaintext := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{'x'}, size))
	return fmt.Appendf(nil, `{"plaintext":%q,%s}`, plaintext, binding), batchOf(fmt.Sprintf(`{"key":7,"plaintext":%q,%s}`, plaintext, binding))
}

func batchOf(item string) []byte {
	items := bytes.Repeat([]byte(item+","), 100)
	return fmt.Appendf(nil, `{"items":[%s]}`, items[:len(items)-1])
}

// loads makes the cases.
func (b *bed) loads(ctx context.Context, size int) ([]load, error) {
	single, encryptBatch := bodies(size)
	sealed, err := b.encryptOne(ctx, single)
	if err != nil {
		return nil, err
	}
	const json = "application/json"
	kinds := []load{
		{name: "empty handler", body: single, contentType: json, items: 1, empty: true},
		{name: "encrypt", path: "/v1/keys/7/encrypt", body: single, contentType: json, items: 1},
		{name: "encrypt, raw body", path: "/v1/keys/7/encrypt", body: bytes.Repeat([]byte{'x'}, size), contentType: "application/octet-stream", items: 1},
		{name: "decrypt", path: "/v1/keys/7/decrypt", body: fmt.Appendf(nil, `{"ciphertext":%q,%s}`, sealed, binding), contentType: json, items: 1},
		{name: "encrypt, batch of 100", path: "/v1/batch/encrypt", body: encryptBatch, contentType: json, items: 100},
		{name: "decrypt, batch of 100", path: "/v1/batch/decrypt", body: batchOf(fmt.Sprintf(`{"ciphertext":%q,%s}`, sealed, binding)), contentType: json, items: 100},
	}
	var all []load
	for _, concurrency := range []int{1, 16, 64} {
		for _, k := range kinds {
			k.concurrency = concurrency
			all = append(all, k)
		}
	}
	return all, nil
}

func print(loads []load, results [][]result, size int) {
	fmt.Printf("%d-byte plaintexts, TLS 1.3, HTTP/1.1 keep-alive, and gRPC; closed loop; medians. CPU is the server's, user and system.\n\n", size)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "case\tc\titems/s\tp50 µs\tp99 µs\tp99.9 µs\tCPU µs/item\tCPU µs/request\tCPU ÷ empty\t")
	for i, l := range loads {
		// The empty handler of the same concurrency, or of the highest there is.
		var empty []result
		for j, e := range loads {
			if e.empty && e.path == "" && e.concurrency <= max(l.concurrency, 1) {
				empty = results[j]
			}
		}
		median := func(f func(r, empty result) float64) float64 {
			values := make([]float64, len(results[i]))
			for j, r := range results[i] {
				values[j] = f(r, empty[j])
			}
			slices.Sort(values)
			return values[len(values)/2]
		}
		micro := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.2f\t%.1f\t%.2f\t\n", l.name, l.concurrency,
			median(func(r, _ result) float64 { return r.requests / r.took.Seconds() * float64(l.items) }),
			median(func(r, _ result) float64 { return micro(r.p50) }),
			median(func(r, _ result) float64 { return micro(r.p99) }),
			median(func(r, _ result) float64 { return micro(r.p999) }),
			median(func(r, _ result) float64 { return micro(r.cpu) / r.requests / float64(l.items) }),
			median(func(r, _ result) float64 { return micro(r.cpu) / r.requests }),
			median(func(r, e result) float64 { return (micro(r.cpu) / r.requests) / (micro(e.cpu) / e.requests) }))
	}
	_ = t.Flush()
}
