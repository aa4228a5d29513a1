package epochs_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/epochs"
)

// Keys that are closed are not keys of which all were destroyed: a change that goes on
// while the machine is being sealed finds nothing destroyed, and writes nothing.
func TestClosed(t *testing.T) {
	machine, dir, ctx := hsmtest.Open(t), t.TempDir(), t.Context()
	k, err := epochs.Create(ctx, machine, dir)
	if err != nil {
		t.Fatal(err)
	}
	all := items(epochs.Leaf{Index: 7, Version: 1})
	if err := k.Lock(all); err != nil {
		t.Fatal(err)
	}
	before, err := k.Copy()
	if err != nil {
		t.Fatal(err)
	}
	k.Close()
	locked := []epochs.Item{{Leaf: all[0].Leaf, Locked: all[0].Locked}}
	for what, err := range map[string]error{
		"unlock": k.Unlock(locked), "lock": k.Lock(items(all[0].Leaf)),
		"destroy": k.Destroy(ctx, 5, []epochs.Leaf{{Index: 8, Version: 1}}), "seal": k.SealUnder(ctx, 1, 1),
	} {
		if !errors.Is(err, fault.Sealed) {
			t.Errorf("%s after closing: %v", what, err)
		}
	}
	if k.Gone(all[0].Leaf) {
		t.Error("what was never destroyed is said to be gone")
	}
	after, err := k.Copy()
	if err != nil || !bytes.Equal(before, after) {
		t.Fatalf("the file was written after closing: %v", err)
	}
	again, err := epochs.Open(ctx, machine, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Unlock(locked); err != nil || locked[0].Wrapped != all[0].Wrapped {
		t.Errorf("the key does not open any more: %v", err)
	}
}
