package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
)

// firstOfMany is the index from which runMany makes keys.
const firstOfMany = 1000

// runMany measures what very many keys cost: their making, the start of a service that has
// them, its memory, one more change, and calls beside those of a service that has one key.
func runMany(ctx context.Context, trikey string, keys int, each time.Duration, rounds, size int) (err error) {
	var beds [2]*bed
	for i := range beds {
		b, err := newBed(ctx, trikey)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.close()) }()
		beds[i] = b
	}
	few, many := beds[0], beds[1]
	start := time.Now()
	if err := many.command(ctx, nil, "key", "create-many", "--config", many.config, "--index", fmt.Sprint(firstOfMany), "--count", fmt.Sprint(keys)); err != nil {
		return err
	}
	fmt.Printf("%d keys made in %.1f s\n", keys, time.Since(start).Seconds())
	if err := many.restart(ctx); err != nil {
		return err
	}
	if err := many.changes(ctx); err != nil {
		return err
	}
	loads := few.manyLoads(size, keys)
	results := make([][]result, len(loads))
	for range rounds {
		for i, l := range loads {
			b := few
			if l.many {
				b = many
			}
			r, err := b.measure(ctx, l, each)
			if err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			results[i] = append(results[i], r)
		}
	}
	print(loads, results, size)
	return memory("after these calls", many.trikey.process.Process.Pid)
}

// manyLoads are calls of both services.
func (b *bed) manyLoads(size, keys int) (all []load) {
	single, batch := bodies(size)
	const json = "application/json"
	kinds := []load{
		{name: "empty handler", body: single, contentType: json, items: 1, empty: true},
		{name: "encrypt, one key", path: "/v1/keys/7/encrypt", body: single, contentType: json, items: 1},
		{name: "encrypt, one of many keys", path: "/v1/keys/7/encrypt", body: single, contentType: json, items: 1, many: true},
		{name: "encrypt, 10,000 keys at random", body: single, contentType: json, items: 1, many: true, spread: min(keys, 10_000)},
		{name: "encrypt, any key at random", body: single, contentType: json, items: 1, many: true, spread: keys},
		{name: "batch of 100, one key", path: "/v1/batch/encrypt", body: batch, contentType: json, items: 100},
		{name: "batch of 100, one of many keys", path: "/v1/batch/encrypt", body: batch, contentType: json, items: 100, many: true},
	}
	for _, k := range kinds {
		k.concurrency = 16
		all = append(all, k)
	}
	return all
}

// restart ends the service and prints what its start costs.
func (b *bed) restart(ctx context.Context) error {
	_ = b.trikey.process.Process.Signal(os.Interrupt)
	_ = b.trikey.process.Wait()
	start := time.Now()
	b.trikey.process = b.server(ctx)
	if err := b.trikey.process.Start(); err != nil {
		return err
	}
	if err := b.wait(ctx, b.trikey.address); err != nil {
		return err
	}
	live := time.Since(start)
	if err := b.unseal(ctx); err != nil {
		return err
	}
	for {
		res, err := http.Get("http://" + b.ops + "/readyz") //nolint:noctx // the loop ends with ctx
		if err == nil {
			_ = res.Body.Close()
		}
		if err == nil && res.StatusCode == http.StatusOK {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(20 * time.Millisecond)
	}
	ready := time.Since(start)
	cpu, err := cpuOf(b.trikey.process.Process.Pid)
	fmt.Printf("start: answers after %.1f s, ready after %.1f s, %.1f s of CPU\n", live.Seconds(), ready.Seconds(), cpu.Seconds())
	return errors.Join(err, memory("when ready", b.trikey.process.Process.Pid))
}

// memory prints what a process has of it.
func memory(when string, pid int) error {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	fmt.Printf("memory %s:", when)
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "VmHWM", "VmRSS", "RssAnon", "RssFile":
			fmt.Printf(" %s %s", name, strings.TrimSpace(value))
		}
	}
	fmt.Println()
	return nil
}

// changes prints what one more key, and one rotation, cost the service.
func (b *bed) changes(ctx context.Context) error {
	const times = 50
	for _, args := range [][]string{{"key", "create"}, {"key", "rotate", fmt.Sprint(firstOfMany + 5)}} {
		before, err := cpuOf(b.trikey.process.Process.Pid)
		if err != nil {
			return err
		}
		start := time.Now()
		for range times {
			if err := b.command(ctx, nil, append(args, "--config", b.config)...); err != nil {
				return err
			}
		}
		after, err := cpuOf(b.trikey.process.Process.Pid)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %.1f ms with the command's own start, %.2f ms of the service's CPU\n", strings.Join(args[:2], " "),
			time.Since(start).Seconds()*1000/times, (after-before).Seconds()*1000/times)
	}
	return nil
}
