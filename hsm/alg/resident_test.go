package alg_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
)

// The suite of tokens has a name, and nothing here computes it.
func TestResident(t *testing.T) {
	id := alg.AES256GCMResident
	got, err := alg.ByName(id.String())
	if err != nil || got != id || slices.Contains(alg.Names(), id.String()) {
		t.Errorf("ByName(%s) = %v, %v", id, got, err)
	}
	text, err := id.MarshalText()
	if err != nil || string(text) != "aes-256-gcm-resident" {
		t.Errorf("%q, %v", text, err)
	}
	_, lookup := alg.Lookup(id)
	_, build := alg.NewCipher(id, make([]byte, 32))
	for _, err := range []error{lookup, build, id.MessageKey(make([]byte, 32), make([]byte, 32), nil, 1, 1)} {
		if !errors.Is(err, fault.AlgorithmNotAllowed) {
			t.Errorf("%v", err)
		}
	}
}
