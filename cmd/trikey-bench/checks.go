package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	v1 "github.com/trikey/trikey/api/v1"
)

// barePath is where the empty handler is not empty: it encrypts, for anybody.
const barePath = "/bare"

// allOn has a service hold every caller to everything that can be configured. The rates are
// never reached: what is measured is the counting.
var allOn = []string{
	"TRIKEY_AUDIT_DATA=sync", "TRIKEY_LIMITS_APP=items=1000000000/s,burst=1000000000",
	"TRIKEY_LIMITS_KEY=items=1000000000/s,burst=1000000000", "TRIKEY_LIMITS_ADDRESS=items=1000000000/s,burst=1000000000",
}

// targetCPU is what a single encryption with all checks may cost.
const targetCPU = 60 * time.Microsecond

// runChecks measures what knowing the caller, whitelist, grants, limits, replay protection,
// metrics and audit cost: a service with all of them, one with all off that can be off, and
// the same encryption without any.
func runChecks(ctx context.Context, trikey string, each time.Duration, rounds, size int) (err error) {
	on, err := newBed(ctx, trikey, allOn...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, on.close()) }()
	off, err := newBed(ctx, trikey, "TRIKEY_AUDIT_DATA=off")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, off.close()) }()
	loads := checkLoads(size)
	results := make([][]result, len(loads))
	for range rounds {
		for i, l := range loads {
			b := on
			if l.off {
				b = off
			}
			r, err := b.measure(ctx, l, each)
			if err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			results[i] = append(results[i], r)
		}
	}
	print(loads, results, size)
	printCost(loads, results)
	return nil
}

func checkLoads(size int) (all []load) {
	single, _ := bodies(size)
	const path, media = "/v1/keys/7/encrypt", "application/json"
	kinds := []load{
		{name: "empty handler", empty: true},
		{name: "encrypt, nothing else", path: barePath, empty: true},
		{name: "encrypt, all off", path: path, off: true},
		{name: "encrypt, all on", path: path},
		{name: "encrypt, all on, signed", path: path, signed: true},
	}
	for _, concurrency := range []int{1, 16} {
		for _, k := range kinds {
			k.body, k.contentType, k.items, k.concurrency = single, media, 1, concurrency
			all = append(all, k)
		}
	}
	return all
}

// printCost prints the differences of the medians, at the highest concurrency.
func printCost(loads []load, results [][]result) {
	cpu := map[string]time.Duration{}
	for i, l := range loads {
		each := make([]time.Duration, len(results[i]))
		for j, r := range results[i] {
			each[j] = time.Duration(float64(r.cpu) / r.requests)
		}
		slices.Sort(each)
		cpu[l.name] = each[len(each)/2]
	}
	full := cpu["encrypt, all on"]
	fmt.Printf("\nall checks and the audit: %v of CPU a request more than nothing else, %v more than all off; together %v (target %v)\n",
		full-cpu["encrypt, nothing else"], full-cpu["encrypt, all off"], full, targetCPU)
}

// bare encrypts what anybody sends with AES-256-GCM: the same JSON, TLS and cipher as the
// service, and nothing of what makes it one.
func bare() (http.HandlerFunc, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return func(w http.ResponseWriter, r *http.Request) {
		var in v1.EncryptRequest
		if err := json.UnmarshalRead(r.Body, &in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out := struct {
			Ciphertext []byte `json:"ciphertext"`
		}{gcm.Seal(nil, nil, in.Plaintext, nil)}
		_ = json.MarshalWrite(w, out)
	}, nil
}
