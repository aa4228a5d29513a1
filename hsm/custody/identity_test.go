package custody_test

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
)

// Whoever signs first, the machine has one identity; a signature counts for its own
// message and context only.
func TestSign(t *testing.T) {
	s := newSite(t)
	signatures := make([]hsm.Signature, 4)
	var wg sync.WaitGroup
	for i := range signatures {
		wg.Go(func() {
			var err error
			if signatures[i], err = s.desk.Sign(t.Context(), "test", []byte("message")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s.restart()
	again, err := s.desk.Sign(t.Context(), "test", []byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range append(signatures, again) {
		if err := sig.Check("test", []byte("message"), again.Fingerprint); err != nil || !bytes.Equal(sig.PublicKey, again.PublicKey) {
			t.Errorf("%v", err)
		}
	}
	altered, foreign := again, again
	altered.Signature = slices.Clone(again.Signature)
	altered.Signature[0] ^= 1
	foreign.Fingerprint = hsm.Fingerprint([]byte("another"))
	for name, err := range map[string]error{
		"another context":     again.Check("report", []byte("message"), ""),
		"another message":     again.Check("test", []byte("Message"), ""),
		"another machine":     again.Check("test", []byte("message"), foreign.Fingerprint),
		"another fingerprint": foreign.Check("test", []byte("message"), ""),
		"an altered one":      altered.Check("test", []byte("message"), ""),
		"none":                hsm.Signature{}.Check("test", []byte("message"), ""),
	} {
		if !errors.Is(err, fault.RecordDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
