package epochs_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/epochs"
)

func items(leaves ...epochs.Leaf) (out []epochs.Item) {
	for _, l := range leaves {
		out = append(out, epochs.Item{Leaf: l, Wrapped: hsm.WrappedKey(bytes.Repeat([]byte{byte(l.Index), byte(l.Version)}, 45))})
	}
	return out
}

// Whatever is destroyed, in whatever order, the rest opens and that does not: with the
// keys in memory, and with those that are read from the file again.
func TestDestroy(t *testing.T) {
	machine, dir, ctx := hsmtest.Open(t), t.TempDir(), t.Context()
	k, err := epochs.Create(ctx, machine, dir)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	var leaves []epochs.Leaf
	for _, index := range []uint32{1, 2, 3, 7, 8, 1 << 31, 0xffffffff} {
		for _, version := range []uint32{1, 2, 3, 4, 5, 6, 7, 8, 9, 100, 0xffffffff} {
			leaves = append(leaves, epochs.Leaf{Index: index, Version: version})
		}
	}
	all := items(leaves...)
	if err := k.Lock(all); err != nil {
		t.Fatal(err)
	}
	gone := map[epochs.Leaf]bool{}
	check := func(k *epochs.Keys) {
		t.Helper()
		got := make([]epochs.Item, len(all))
		for i, it := range all {
			got[i] = epochs.Item{Leaf: it.Leaf, Locked: it.Locked}
		}
		random.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
		if err := k.Unlock(got); err != nil {
			t.Fatal(err)
		}
		want := map[epochs.Leaf]hsm.WrappedKey{}
		for _, it := range all {
			want[it.Leaf] = it.Wrapped
		}
		for _, it := range got {
			if gone[it.Leaf] != (it.Wrapped == "") || gone[it.Leaf] != k.Gone(it.Leaf) || !gone[it.Leaf] && it.Wrapped != want[it.Leaf] {
				t.Fatalf("%v of which %d are destroyed: gone %v, wrapped %x", it.Leaf, len(gone), k.Gone(it.Leaf), it.Wrapped)
			}
		}
	}
	check(k)
	for n, i := range random.Perm(len(leaves)) {
		gone[leaves[i]] = true
		if err := k.Destroy(ctx, uint64(n+1), []epochs.Leaf{leaves[i], leaves[i]}); err != nil {
			t.Fatal(err)
		}
		check(k)
		again, err := epochs.Open(ctx, machine, dir)
		if err != nil || again.Counter() != uint64(n+1) || again.ID() != k.ID() {
			t.Fatal(err)
		}
		check(again)
		again.Close()
	}
	if err := k.Lock(items(leaves[0])); !errors.Is(err, fault.KeyDestroyed) {
		t.Errorf("a destroyed number is used again: %v", err)
	}
	k.Close()
	// What is closed is not destroyed.
	if err := k.Unlock(all); !errors.Is(err, fault.Sealed) || k.Gone(leaves[0]) {
		t.Errorf("closed: %v, gone %v", err, k.Gone(leaves[0]))
	}
	if err := k.Destroy(ctx, 1000, leaves); !errors.Is(err, fault.Sealed) {
		t.Errorf("closed: %v", err)
	}
}

// The file stays small where versions are destroyed in their order, however many.
func TestSmall(t *testing.T) {
	machine, dir, ctx := hsmtest.Open(t), t.TempDir(), t.Context()
	k, err := epochs.Create(ctx, machine, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for v := range uint32(1000) {
		if err := k.Destroy(ctx, uint64(v+1), []epochs.Leaf{{Index: 7, Version: v + 1}}); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, epochs.File))
	if err != nil || info.Size() > 4<<10 {
		t.Errorf("%d bytes: %v", info.Size(), err)
	}
}

// Every byte of the file is authenticated, and the file of another machine is refused.
func TestAltered(t *testing.T) {
	machine, dir, ctx := hsmtest.Open(t), t.TempDir(), t.Context()
	k, err := epochs.Create(ctx, machine, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	raw, err := k.Copy()
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 1
		if _, err := epochs.Read(ctx, machine, bad); err == nil || fault.CodeOf(err).Exit() != fault.ExitUnverified {
			t.Fatalf("byte %d: %v", i, err)
		}
		if _, err := epochs.Read(ctx, machine, raw[:i]); err == nil || fault.CodeOf(err).Exit() != fault.ExitUnverified {
			t.Fatalf("%d bytes: %v", i, err)
		}
	}
	if _, err := epochs.Read(ctx, hsmtest.Open(t), raw); !errors.Is(err, fault.RecordDamaged) {
		t.Errorf("another machine: %v", err)
	}
	// What a write that was cut short has left is not left.
	left := filepath.Join(dir, epochs.File+".new-1")
	if err := os.WriteFile(left, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := epochs.Open(ctx, machine, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := os.Stat(left); err == nil {
		t.Error("an older copy of the keys is left")
	}
}

func BenchmarkUnlock(b *testing.B) {
	k, err := epochs.Create(b.Context(), hsmtest.Open(b), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	var leaves []epochs.Leaf
	for i := range uint32(500) {
		leaves = append(leaves, epochs.Leaf{Index: i + 1, Version: 1})
	}
	all := items(leaves...)
	if err := k.Lock(all); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := k.Unlock(all); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/500, "ns/key")
}
