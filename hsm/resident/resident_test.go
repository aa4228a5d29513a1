package resident_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/hsm/resident"
	"github.com/trikey/trikey/hsm/soft"
	"github.com/trikey/trikey/internal/fault"
)

func TestContract(t *testing.T) {
	hsmtest.RunEngine(t, hsmtest.Engine{
		Open: func(t *testing.T) hsm.Engine {
			e := resident.New(resident.Config{Token: hsmtest.NewChip(t), Region: hsmtest.Region})
			t.Cleanup(func() { _ = e.Close() })
			return e
		},
		Algorithms: []alg.ID{alg.AES256GCM},
		Suite:      func(alg.ID) alg.ID { return alg.AES256GCMResident },
		Purposes:   []hsm.Purpose{hsm.PurposeSeal},
		NoStreams:  true,
	})
}

func open(t testing.TB, cfg resident.Config, root hsm.Root) hsm.Engine {
	t.Helper()
	if cfg.Token == nil {
		cfg.Token = hsmtest.NewChip(t)
	}
	cfg.Region = hsmtest.Region
	e := resident.New(cfg)
	if err := e.Open(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func generate(t testing.TB, e hsm.Machine, index uint32) hsm.GeneratedKey {
	t.Helper()
	k, err := e.GenerateKey(t.Context(), hsm.Binding{Index: index, Version: 1, Algorithm: alg.AES256GCM, Purpose: hsm.PurposeSeal})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func do(t testing.TB, e hsm.Machine, op hsm.Op) ([]byte, error) {
	t.Helper()
	ops := []hsm.Op{op}
	if err := e.Do(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	return ops[0].Output, ops[0].Err
}

// An engine of the other kind says what is the matter, with the same root and chip.
func TestEnginesTellEachOtherApart(t *testing.T) {
	chip, root := hsmtest.NewChip(t), hsmtest.NewRoot(t)
	token := open(t, resident.Config{Token: chip}, root)
	host := soft.New(soft.Config{Chip: chip, Region: hsmtest.Region})
	if err := host.Open(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = host.Close() }()
	for name, pair := range map[string][2]hsm.Engine{"engine: token": {token, host}, "engine: host": {host, token}} {
		theirs, mine := generate(t, pair[0], 7).Wrapped, generate(t, pair[1], 7).Wrapped
		sealed, err := do(t, pair[0], hsm.Op{Kind: hsm.Encrypt, Key: theirs, Input: []byte("x")})
		if err != nil {
			t.Fatal(err)
		}
		for what, op := range map[string]hsm.Op{
			"its key":                {Kind: hsm.Encrypt, Key: theirs, Input: []byte("x")},
			"its ciphertext":         {Kind: hsm.Decrypt, Key: theirs, Input: sealed},
			"its ciphertext, my key": {Kind: hsm.Decrypt, Key: mine, Input: sealed},
			"its key, rewrapped":     {Kind: hsm.Rewrap, Key: theirs},
		} {
			if _, err := do(t, pair[1], op); !errors.Is(err, fault.AlgorithmNotAllowed) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		// Records are the same for both.
		id := hsm.RecordID{Name: "apps/a"}
		record, err := do(t, pair[0], hsm.Op{Kind: hsm.SealRecord, Record: id, Input: []byte("content")})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := do(t, pair[1], hsm.Op{Kind: hsm.OpenRecord, Record: id, Input: record}); err != nil || string(got) != "content" {
			t.Errorf("a record: %q, %v", got, err)
		}
	}
}

// A wrapped key and a ciphertext are what docs/format.md says: computed here from the
// root, with the standard library alone (unwrap_test.go).
func TestFormat(t *testing.T) {
	root := hsmtest.NewRoot(t)
	e := open(t, resident.Config{}, root)
	made := generate(t, e, 7)
	key := unwrapByHand(t, root, made.Wrapped)
	if kcv := "cmac-aes-direct:" + cmacByHand(t, key)[:6]; kcv != made.KCV {
		t.Errorf("key check value %s, want %s", made.KCV, kcv)
	}
	sealed, err := do(t, e, hsm.Op{Kind: hsm.Encrypt, Key: made.Wrapped, Context: []byte("trikey/v1/context"), Input: []byte("hello")})
	if err != nil {
		t.Fatal(err)
	}
	aad := append(bytes.Clone(sealed[:26]), "trikey/v1/context"...)
	if got, err := gcmByHand(t, key).Open(nil, sealed[26:38], sealed[38:], aad); err != nil || string(got) != "hello" || sealed[1] != 0x61 {
		t.Errorf("suite %#x, %q, %v", sealed[1], got, err)
	}
	other, err := do(t, e, hsm.Op{Kind: hsm.Encrypt, Key: made.Wrapped, Input: []byte("hello")})
	if err != nil || bytes.Equal(sealed[10:26], other[10:26]) {
		t.Errorf("a salt came twice, %v", err)
	}
}

// After so many messages a key version is spent, whatever is sealed and opened between;
// it still opens, and another version still seals.
func TestLimit(t *testing.T) {
	root := hsmtest.NewRoot(t)
	e := open(t, resident.Config{Messages: 3}, root)
	key, other := generate(t, e, 7).Wrapped, generate(t, e, 8).Wrapped
	var sealed []byte
	for i := range 3 {
		var err error
		if sealed, err = do(t, e, hsm.Op{Kind: hsm.Encrypt, Key: key, Input: []byte("x")}); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	if err := errors.Join(e.Seal(t.Context()), e.Open(t.Context(), root)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := do(t, e, hsm.Op{Kind: hsm.Encrypt, Key: key, Input: []byte("x")}); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "key rotate 7") {
			t.Errorf("one too many: %v", err)
		}
	}
	if got, err := do(t, e, hsm.Op{Kind: hsm.Decrypt, Key: key, Input: sealed}); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := do(t, e, hsm.Op{Kind: hsm.Reencrypt, Key: key, To: other, Input: sealed}); err != nil {
		t.Error(err)
	}
}

// More keys than the cache holds, used by many at once: evicted keys are unwrapped again.
func TestSmallCache(t *testing.T) {
	e := open(t, resident.Config{Keys: 1}, hsmtest.NewRoot(t))
	keys := make([]hsm.WrappedKey, 40)
	for i := range keys {
		keys[i] = generate(t, e, uint32(i+1)).Wrapped
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			ops := make([]hsm.Op, 2*len(keys))
			for i := range ops {
				ops[i] = hsm.Op{Kind: hsm.Encrypt, Key: keys[(i*7+g)%len(keys)], Input: fmt.Append(nil, i)}
			}
			if err := e.Do(t.Context(), ops); err != nil {
				t.Error(err)
			}
			for i := range ops {
				if ops[i].Err != nil {
					t.Error(ops[i].Err)
				}
				ops[i] = hsm.Op{Kind: hsm.Decrypt, Key: ops[i].Key, Input: ops[i].Output}
			}
			if err := e.Do(t.Context(), ops); err != nil {
				t.Error(err)
			}
			for i := range ops {
				if string(ops[i].Output) != fmt.Sprint(i) {
					t.Errorf("%q, %v", ops[i].Output, ops[i].Err)
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkEncrypt compares the engines, one message a call and a hundred.
func BenchmarkEncrypt(b *testing.B) {
	for name, e := range map[string]hsm.Engine{"host": hsmtest.Open(b), "token": open(b, resident.Config{}, hsmtest.NewRoot(b))} {
		key := generate(b, e, 7).Wrapped
		for _, batch := range []int{1, 100} {
			b.Run(fmt.Sprintf("%s/%dx256", name, batch), func(b *testing.B) {
				ops := make([]hsm.Op, batch)
				for i := range ops {
					ops[i] = hsm.Op{Kind: hsm.Encrypt, Key: key, Input: make([]byte, 256), Output: make([]byte, 0, 512)}
				}
				b.SetBytes(int64(batch * 256))
				for b.Loop() {
					for i := range ops {
						ops[i].Output = ops[i].Output[:0]
					}
					if err := e.Do(b.Context(), ops); err != nil || ops[0].Err != nil {
						b.Fatal(err, ops[0].Err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*batch), "µs/message")
			})
		}
	}
}

// BenchmarkParallel is of single messages from as many callers as there are processors.
func BenchmarkParallel(b *testing.B) {
	for name, e := range map[string]hsm.Engine{"host": hsmtest.Open(b), "token": open(b, resident.Config{}, hsmtest.NewRoot(b))} {
		key := generate(b, e, 7).Wrapped
		b.Run(name, func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					ops := []hsm.Op{{Kind: hsm.Encrypt, Key: key, Input: make([]byte, 256), Output: make([]byte, 0, 512)}}
					if err := e.Do(b.Context(), ops); err != nil || ops[0].Err != nil {
						b.Error(err, ops[0].Err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkUnwrap is of the first use of a key.
func BenchmarkUnwrap(b *testing.B) {
	e := open(b, resident.Config{Keys: 1}, hsmtest.NewRoot(b))
	var ops []hsm.Op
	for i := range 64 {
		ops = append(ops, hsm.Op{Kind: hsm.Encrypt, Key: generate(b, e, uint32(i)).Wrapped, Input: []byte("x")})
	}
	for b.Loop() {
		if err := e.Do(b.Context(), ops); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(ops)), "µs/key")
}
