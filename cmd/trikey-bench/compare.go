package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// settings are those of one measurement.
type settings struct {
	trikey string
	each   time.Duration // of one case in one round
	rounds int
	size   int // of a plaintext
}

// comparison is the same cases at several services, each in turn with the others, beside
// the empty handler of the first.
type comparison struct {
	title string
	kind  string // what the services differ in
	beds  []*bed
	cases []string // NAME/CONCURRENCY
}

// pick returns a service's loads, in the order of the cases.
func (c *comparison) pick(ctx context.Context, b *bed, size int) (picked []load, err error) {
	all, err := b.loads(ctx, size)
	if err != nil {
		return nil, err
	}
	if b.rpc, err = b.newRPC(size); err != nil {
		return nil, err
	}
	over, err := b.rpc.calls(ctx)
	if err != nil {
		return nil, err
	}
	all = append(all, over...)
	for _, want := range c.cases {
		at := slices.IndexFunc(all, func(l load) bool { return want == fmt.Sprintf("%s/%d", l.name, l.concurrency) })
		if at < 0 {
			return nil, errors.New("there is no case " + want)
		}
		picked = append(picked, all[at])
	}
	return picked, nil
}

// run measures, and prints a table.
func (c *comparison) run(ctx context.Context, s settings) error {
	loads := make([][]load, len(c.beds))
	results := make([][][]result, len(c.beds)) // by service, case, round
	for j, b := range c.beds {
		var err error
		if loads[j], err = c.pick(ctx, b, s.size); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		results[j] = make([][]result, len(c.cases))
	}
	empty := map[int][]result{} // by concurrency
	first, err := c.beds[0].loads(ctx, s.size)
	if err != nil {
		return err
	}
	first = slices.DeleteFunc(first, func(l load) bool { return !l.empty })
	for range s.rounds {
		for _, l := range first {
			r, err := c.beds[0].measure(ctx, l, s.each)
			if err != nil {
				return err
			}
			empty[l.concurrency] = append(empty[l.concurrency], r)
		}
		for i := range c.cases {
			for j, b := range c.beds {
				r, err := b.measure(ctx, loads[j][i], s.each)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", b.name, c.cases[i], err)
				}
				results[j][i] = append(results[j][i], r)
			}
		}
	}
	return c.print(s, loads, results, empty)
}

func (c *comparison) print(s settings, loads [][]load, results [][][]result, empty map[int][]result) error {
	fmt.Printf("\n%s\n%d-byte plaintexts; medians of %d rounds. CPU is that of all processes but the caller's. Empty: a TLS handler that does nothing, in the same round.\n\n",
		c.title, s.size, s.rounds)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "case\tc\t%s\titems/s\tp50 µs\tp99 µs\tp99.9 µs\tCPU µs/item\tCPU ÷ first\tCPU ÷ empty\t\n", c.kind)
	for i := range c.cases {
		for j, b := range c.beds {
			l := loads[j][i]
			least := empty[min(l.concurrency, 64)]
			fmt.Fprintf(t, "%s\t%d\t%s\t", strings.TrimSuffix(l.name, ","), l.concurrency, b.name)
			for _, column := range []struct {
				format string
				value  func(r, first, empty result) float64
			}{
				{"%.0f", func(r, _, _ result) float64 { return r.requests / r.took.Seconds() * float64(l.items) }},
				{"%.0f", func(r, _, _ result) float64 { return micro(r.p50) }},
				{"%.0f", func(r, _, _ result) float64 { return micro(r.p99) }},
				{"%.0f", func(r, _, _ result) float64 { return micro(r.p999) }},
				{"%.2f", func(r, _, _ result) float64 { return r.each() / float64(l.items) }},
				{"%.2f", func(r, first, _ result) float64 { return r.each() / first.each() }},
				{"%.2f", func(r, _, empty result) float64 { return r.each() / empty.each() }},
			} {
				values := make([]float64, s.rounds)
				for k := range values {
					values[k] = column.value(results[j][i][k], results[0][i][k], least[k])
				}
				fmt.Fprintf(t, column.format+"\t", median(values))
			}
			fmt.Fprintln(t)
		}
	}
	return t.Flush()
}

func micro(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// each is the processor time of one request, in microseconds.
func (r result) each() float64 { return micro(r.cpu) / r.requests }

func median[N cmp.Ordered](values []N) N {
	slices.Sort(values)
	return values[len(values)/2]
}

// runApart measures every way to use a machine.
func runApart(ctx context.Context, s settings) (err error) {
	f, err := newFleet(ctx, s.trikey)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	c := comparison{title: "Crypto machines in the process and apart", kind: "machine", beds: f.beds, cases: []string{
		"encrypt/1", "encrypt/16", "encrypt, batch of 100/16", "gRPC unary encrypt/16", "SDK stream, encrypt/64",
	}}
	return c.run(ctx, s)
}
