package soft_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/hsm/soft"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

func TestContract(t *testing.T) {
	hsmtest.RunEngine(t, hsmtest.Engine{Open: func(t *testing.T) hsm.Engine {
		e := soft.New(soft.Config{Chip: hsmtest.NewChip(t), Region: hsmtest.Region})
		t.Cleanup(func() { _ = e.Close() })
		return e
	}})
}

func generate(t testing.TB, e hsm.Machine, index uint32) hsm.WrappedKey {
	t.Helper()
	k, err := e.GenerateKey(t.Context(), hsm.Binding{Index: index, Version: 1, Algorithm: alg.AES256GCM, Purpose: hsm.PurposeSeal})
	if err != nil {
		t.Fatal(err)
	}
	return k.Wrapped
}

func encrypt(t testing.TB, e hsm.Machine, key hsm.WrappedKey) []byte {
	t.Helper()
	ops := []hsm.Op{{Kind: hsm.Encrypt, Key: key, Input: []byte("text")}}
	if err := errors.Join(e.Do(t.Context(), ops), ops[0].Err); err != nil {
		t.Fatal(err)
	}
	return ops[0].Output
}

// A root opens again what it sealed before the machine was sealed; and nothing that was
// in locked memory stays.
func TestSealAndOpenAgain(t *testing.T) {
	chip, root := hsmtest.NewChip(t), hsmtest.NewRoot(t)
	_, before := secret.Usage()
	e := soft.New(soft.Config{Chip: chip, Region: hsmtest.Region})
	if err := e.Open(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	if err := e.Open(t.Context(), root); !errors.Is(err, fault.MachineOpen) {
		t.Errorf("opened twice: %v", err)
	}
	key := generate(t, e, 7)
	sealed := encrypt(t, e, key)
	if err := e.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, after := secret.Usage(); after != before {
		t.Errorf("%d bytes of locked memory are in use by a sealed machine", after-before)
	}
	if _, err := e.GenerateKey(t.Context(), hsm.Binding{}); !errors.Is(err, fault.Sealed) {
		t.Errorf("sealed: %v", err)
	}
	if err := e.Open(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	ops := []hsm.Op{{Kind: hsm.Decrypt, Key: key, Input: sealed}}
	if err := e.Do(t.Context(), ops); err != nil || !bytes.Equal(ops[0].Output, []byte("text")) {
		t.Errorf("%q, %v, %v", ops[0].Output, err, ops[0].Err)
	}
}

// What is forgotten is no longer in locked memory: neither the key nor what was derived
// from it, also when the key itself has left the cache before.
func TestForget(t *testing.T) {
	e := soft.New(soft.Config{Chip: hsmtest.NewChip(t), Region: hsmtest.Region, Keys: 1})
	if err := e.Open(t.Context(), hsmtest.NewRoot(t)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	_, before := secret.Usage()
	var keys []hsm.WrappedKey
	for i := range uint32(40) {
		keys = append(keys, generate(t, e, i+1))
		encrypt(t, e, keys[i])
	}
	if _, used := secret.Usage(); used < before+40*32 {
		t.Fatalf("%d bytes are in use", used-before)
	}
	for _, k := range keys {
		ops := []hsm.Op{{Kind: hsm.Forget, Key: k}}
		if err := errors.Join(e.Do(t.Context(), ops), ops[0].Err); err != nil {
			t.Fatal(err)
		}
	}
	if _, after := secret.Usage(); after != before {
		t.Errorf("%d bytes stay", after-before)
	}
}

func TestAnotherRegion(t *testing.T) {
	root := hsmtest.NewRoot(t)
	e := soft.New(soft.Config{Chip: hsmtest.NewChip(t), Region: "elsewhere"})
	if err := e.Open(t.Context(), root); !errors.Is(err, fault.WrongRegion) {
		t.Errorf("a root of another region: %v", err)
	}
	chip := hsmtest.NewChip(t)
	here := soft.New(soft.Config{Chip: chip, Region: hsmtest.Region})
	if err := here.Open(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	key := []byte(generate(t, here, 7))
	copy(key[18:], "tesT") // the region's name, in the wrapped key's header
	ops := []hsm.Op{{Kind: hsm.Encrypt, Key: hsm.WrappedKey(key), Input: []byte("x")}}
	if err := here.Do(t.Context(), ops); err != nil || !errors.Is(ops[0].Err, fault.WrongRegion) {
		t.Errorf("%v, %v", err, ops[0].Err)
	}
}

// More keys than the caches hold, used by many at once: evicted keys are fetched again.
func TestSmallCaches(t *testing.T) {
	e := soft.New(soft.Config{Chip: hsmtest.NewChip(t), Region: hsmtest.Region, Keys: 1, MessageKeys: 1})
	if err := e.Open(t.Context(), hsmtest.NewRoot(t)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	keys := make([]hsm.WrappedKey, 100)
	for i := range keys {
		keys[i] = generate(t, e, uint32(i+1))
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			ops := make([]hsm.Op, len(keys))
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

// The salt changes after an hour.
func TestEpoch(t *testing.T) {
	now := time.Now()
	e := soft.New(soft.Config{Chip: hsmtest.NewChip(t), Region: hsmtest.Region, Now: func() time.Time { return now }})
	if err := e.Open(t.Context(), hsmtest.NewRoot(t)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	key := generate(t, e, 7)
	salt := func() string { return string(encrypt(t, e, key)[10:26]) }
	first := salt()
	if now = now.Add(59 * time.Minute); salt() != first {
		t.Error("the salt changed within the hour")
	}
	if now = now.Add(2 * time.Minute); salt() == first {
		t.Error("the salt is older than an hour")
	}
}

func BenchmarkDo(b *testing.B) {
	e := hsmtest.Open(b)
	key := generate(b, e, 7)
	for _, batch := range []int{1, 100} {
		for _, size := range []int{16, 64, 256, 1024, 5120, 51200, 1 << 20} {
			b.Run(fmt.Sprintf("encrypt/%dx%d", batch, size), func(b *testing.B) {
				ops := make([]hsm.Op, batch)
				plaintext := make([]byte, size)
				for i := range ops {
					ops[i] = hsm.Op{Kind: hsm.Encrypt, Key: key, Input: plaintext, Output: make([]byte, 0, size+54)}
				}
				b.SetBytes(int64(batch * size))
				b.ReportAllocs()
				for b.Loop() {
					for i := range ops {
						ops[i].Output = ops[i].Output[:0]
					}
					if err := e.Do(b.Context(), ops); err != nil || ops[0].Err != nil {
						b.Fatal(err, ops[0].Err)
					}
				}
			})
		}
	}
}
