package kms_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/auth"
)

// TestManyKeys makes more keys than are kept decoded, and uses all of them: each is found by
// index and by name, opens what it sealed after it was put away, and its counts are right;
// another service finds the same keys.
func TestManyKeys(t *testing.T) {
	s := newSite(t)
	service, ctx := s.service(), t.Context()
	const from, total = 101, 33_500
	for at := 0; at < total; at += kms.MaxNewKeys {
		n := min(kms.MaxNewKeys, total-at)
		if made, err := service.CreateKeys(ctx, "test", kms.NewKey{Index: uint32(from + at), Name: "many"}, n); err != nil || made != n {
			t.Fatal(made, err)
		}
	}
	app := &auth.Caller{App: &auth.App{Grants: grantsOf(t, "keys=1-99999;ops=encrypt,decrypt")}}
	var sealed [total][]byte
	const batch = 500
	for round := range 2 {
		for at := 0; at < total; at += batch {
			calls := make([]kms.Call, batch)
			for i := range calls {
				calls[i] = kms.Call{Kind: hsm.Encrypt, Key: fmt.Sprintf("many-%d", from+at+i), Input: []byte{byte(at), byte(i)}}
				if round == 1 {
					calls[i].Kind, calls[i].Input = hsm.Decrypt, sealed[at+i]
				}
			}
			for i, c := range does(t, service, app, calls...) {
				if c.Err != nil || c.KeyIndex != uint32(from+at+i) {
					t.Fatal(c.KeyIndex, c.Err)
				}
				if sealed[at+i] = c.Output; round == 1 && string(c.Output) != string([]byte{byte(at), byte(i)}) {
					t.Fatalf("key %d: %x", from+at+i, c.Output)
				}
			}
		}
	}
	used := 0
	service.Uses(func(u kms.Use) {
		if used++; u.Seals != 1 || u.Opens != 1 {
			t.Errorf("%+v", u)
		}
	})
	if used != total {
		t.Errorf("%d keys were used", used)
	}
	// What cannot be made stops the call, after what could be.
	made, err := service.CreateKeys(ctx, "test", kms.NewKey{Index: from - 50, Name: "few"}, 60)
	if made != 50 || !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "50 of 60") {
		t.Errorf("%d, %v", made, err)
	}
	for _, n := range []int{0, -1, kms.MaxNewKeys + 1} {
		if _, err := service.CreateKeys(ctx, "test", kms.NewKey{Index: 90_000}, n); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%d keys: %v", n, err)
		}
	}
	// The lowest free index, beside those that were made together.
	if k, err := service.CreateKey(ctx, "test", kms.NewKey{}); err != nil || k.Index != 1 {
		t.Errorf("%+v, %v", k, err)
	}
	page, err := s.service().ListKeysFrom(from, 3)
	if err != nil || len(page) != 3 || page[0].Name != "many-101" || page[2].Index != from+2 {
		t.Errorf("%v, %v", page, err)
	}
}
