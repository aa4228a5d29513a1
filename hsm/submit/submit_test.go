package submit_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/submit"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// counting returns 16 bytes that count up.
func counting(from byte) (id hsm.ID) {
	for i := range id {
		id[i] = from + byte(i)
	}
	return id
}

// The fingerprint is what docs/api.md says: this one was computed by another program.
func TestFingerprint(t *testing.T) {
	public := make([]byte, 32)
	for i := range public {
		public[i] = byte(64 + i)
	}
	w := hsm.Window{MachineID: counting(0), SplitID: counting(16), ID: counting(32), PublicKey: public}
	const want = "3RQP-TRGE-DFBN-L4V6"
	if got := submit.Fingerprint(w); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for typed, same := range map[string]bool{
		want: true, " 3rqp trge dfbn l4v6 \n": true, "3RQPTRGEDFBNL4V6": true, "": false, "L4V6": false, "3RQP-TRGE-DFBN-L4V7": false,
	} {
		if submit.SameFingerprint(typed, want) != same {
			t.Errorf("%q: not %v", typed, same)
		}
	}
	for name, change := range map[string]func(*hsm.Window){
		"machine": func(w *hsm.Window) { w.MachineID[0] ^= 1 }, "split": func(w *hsm.Window) { w.SplitID[0] ^= 1 },
		"window": func(w *hsm.Window) { w.ID[0] ^= 1 }, "key": func(w *hsm.Window) { w.PublicKey = bytes.Repeat([]byte{1}, 32) },
	} {
		other := w
		change(&other)
		if submit.Fingerprint(other) == want {
			t.Errorf("another %s has the same fingerprint", name)
		}
	}
}

// A submission opens with the key that it was sealed to, until that is wiped.
func TestKey(t *testing.T) {
	_, before := secret.Usage()
	key, err := submit.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	another, err := submit.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	w := hsm.Window{MachineID: hsm.NewID(), SplitID: hsm.NewID(), ID: hsm.NewID(), PublicKey: key.Public()}
	plain, err := secret.Random(700)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := submit.Seal(w, plain)
	if err != nil {
		t.Fatal(err)
	}
	again, err := submit.Seal(w, plain)
	if err != nil || bytes.Equal(sealed, again) {
		t.Errorf("sealed twice the same, %v", err)
	}
	opened, err := key.Open(w, sealed)
	if err != nil || !opened.Equal(plain) {
		t.Errorf("%v", err)
	}
	if _, err := another.Open(w, sealed); !errors.Is(err, fault.DecryptFailed) {
		t.Errorf("with another key: %v", err)
	}
	key.Wipe()
	if _, err := key.Open(w, sealed); !errors.Is(err, fault.DecryptFailed) {
		t.Errorf("with a wiped key: %v", err)
	}
	for _, b := range []*secret.Bytes{opened, plain} {
		b.Wipe()
	}
	another.Wipe()
	if _, after := secret.Usage(); after != before {
		t.Errorf("%d bytes are left", after-before)
	}
	for _, public := range [][]byte{nil, make([]byte, 31), make([]byte, 32)} {
		w.PublicKey = public
		if _, err := submit.Seal(w, message(t)); err == nil {
			t.Errorf("sealed to %x", public)
		}
	}
}

func message(t *testing.T) *secret.Bytes {
	t.Helper()
	b, err := secret.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Wipe)
	return b
}

// Nothing is sent to an address without TLS.
func TestDial(t *testing.T) {
	for to, want := range map[string]error{
		"https://host:1": nil, "https://host:1/": nil, "host:1": nil, "https://[::1]:7448": nil,
		"http://host:1": fault.Usage, "https://": fault.Usage, "": fault.Usage, "https://host:1/v1/submission": fault.Usage, "ftp://h": fault.Usage,
	} {
		if _, err := submit.Dial(to, &tls.Config{MinVersion: tls.VersionTLS13}); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%q: %v, want %v", to, err, want)
		}
	}
}
