package alg_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

func TestSealAndOpen(t *testing.T) {
	canonical := envelope.Context{"app": "im"}.AppendCanonical(nil)
	for _, id := range suites() {
		key := randomKey(t, id)
		h := envelope.Header{Suite: byte(id), Index: 7, Version: 2, Salt: [16]byte{1}, Nonce: [12]byte{2}}
		sealed, err := alg.Seal([]byte("before"), key, &h, canonical, []byte("hello"))
		if err != nil {
			t.Fatal(err)
		}
		sealed, ok := bytes.CutPrefix(sealed, []byte("before"))
		want := envelope.Overhead + len("hello")
		if id == alg.SM4CBCHMAC {
			want = envelope.Overhead + 16 // padded
		}
		if !ok || len(sealed) != want {
			t.Fatalf("%s: %x", id, sealed)
		}
		opened, err := alg.Open([]byte("before"), key, canonical, sealed)
		if err != nil || string(opened) != "beforehello" {
			t.Errorf("%s: %q, %v", id, opened, err)
		}
		if _, err := alg.Open(nil, key, envelope.Context{"app": "mi"}.AppendCanonical(nil), sealed); !errors.Is(err, fault.DecryptFailed) {
			t.Errorf("%s, another context: %v", id, err)
		}
		// The salt decides the key, which is given here; each other byte decides what opens.
		for i := range sealed {
			if i >= 10 && i < 10+envelope.SaltSize {
				continue
			}
			changed := bytes.Clone(sealed)
			changed[i] ^= 0x80
			if out, err := alg.Open([]byte("before"), key, canonical, changed); !errors.Is(err, fault.DecryptFailed) || string(out) != "before" {
				t.Errorf("%s, byte %d changed: %q, %v", id, i, out, err)
			}
		}
		for n := range sealed {
			if _, err := alg.Open(nil, key, canonical, sealed[:n]); !errors.Is(err, fault.DecryptFailed) {
				t.Errorf("%s, cut to %d bytes: %v", id, n, err)
			}
		}
	}
}

func TestSealRefuses(t *testing.T) {
	if _, err := alg.Seal(nil, make([]byte, 32), &envelope.Header{Suite: 9}, nil, nil); !errors.Is(err, fault.AlgorithmNotAllowed) {
		t.Errorf("suite 9: %v", err)
	}
	if _, err := alg.Seal(nil, make([]byte, 16), &envelope.Header{Suite: byte(alg.AES256GCM)}, nil, nil); !errors.Is(err, fault.Internal) {
		t.Errorf("a short key: %v", err)
	}
}
