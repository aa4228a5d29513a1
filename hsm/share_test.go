package hsm_test

import (
	"errors"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

func deal(t *testing.T, root *secret.Bytes, threshold, shares uint8) []*hsm.Share {
	t.Helper()
	dealt, err := hsm.Deal(root, hsm.Manifest{
		MachineID: hsm.NewID(), RootID: hsm.NewID(), SplitID: hsm.NewID(), Generation: 1, Threshold: threshold, Shares: shares, KCV: "cmac-aes:000000",
	})
	if err != nil {
		t.Fatal(err)
	}
	return dealt
}

// Any threshold of shares, in any order, rebuilds the root.
func TestRebuild(t *testing.T) {
	root, err := secret.Random(hsm.RootSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []struct{ threshold, shares uint8 }{{2, 2}, {3, 3}, {3, 5}, {16, 16}} {
		dealt := deal(t, root, n.threshold, n.shares)
		for first := range dealt {
			var some []*hsm.Share
			for i := range n.threshold {
				some = append(some, dealt[(first+int(n.shares)-int(i))%len(dealt)])
			}
			again, err := hsm.Rebuild(some)
			if err != nil || !again.Equal(root) {
				t.Fatalf("%d of %d from share %d: %v", n.threshold, n.shares, first+1, err)
			}
		}
	}
}

// What is not exactly a threshold of the shares that were dealt together never reaches
// the combiner, which would give a wrong root and no error.
func TestRebuildRefuses(t *testing.T) {
	root, err := secret.Random(hsm.RootSize)
	if err != nil {
		t.Fatal(err)
	}
	dealt, other := deal(t, root, 3, 5), deal(t, root, 3, 5)
	altered := func(change func(*hsm.Share)) *hsm.Share {
		x := *dealt[2]
		change(&x)
		return &x
	}
	garbage, err := secret.Random(hsm.ShareSize)
	if err != nil {
		t.Fatal(err)
	}
	short, err := secret.Random(hsm.ShareSize - 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		shares []*hsm.Share
		want   fault.Code
	}{
		"none":              {nil, fault.CardsMissing},
		"two":               {dealt[:2], fault.CardsMissing},
		"four":              {dealt[:4], fault.CardsMissing},
		"one twice":         {[]*hsm.Share{dealt[0], dealt[1], dealt[0]}, fault.CardRepeated},
		"of another split":  {[]*hsm.Share{dealt[0], dealt[1], other[2]}, fault.CardOtherMachine},
		"garbage":           {[]*hsm.Share{dealt[0], dealt[1], altered(func(s *hsm.Share) { s.Value = garbage })}, fault.CardMismatch},
		"a byte short":      {[]*hsm.Share{dealt[0], dealt[1], altered(func(s *hsm.Share) { s.Value = short })}, fault.CardMismatch},
		"another's index":   {[]*hsm.Share{dealt[0], dealt[1], altered(func(s *hsm.Share) { s.Index = 4 })}, fault.CardMismatch},
		"no index":          {[]*hsm.Share{dealt[0], dealt[1], altered(func(s *hsm.Share) { s.Index = 0 })}, fault.CardMismatch},
		"an index too many": {[]*hsm.Share{dealt[0], dealt[1], altered(func(s *hsm.Share) { s.Index = 6 })}, fault.CardMismatch},
		"a lower threshold": {[]*hsm.Share{dealt[0], dealt[1], altered(func(s *hsm.Share) { s.Manifest.Threshold = 2 })}, fault.CardMismatch},
	} {
		if key, err := hsm.Rebuild(test.shares); !errors.Is(err, test.want) || key != nil {
			t.Errorf("%s: %v, want %s", name, err, string(test.want))
		}
	}
}
