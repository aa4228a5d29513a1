package main_test

import (
	"crypto/aes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/hsm/soft"
	"github.com/trikey/trikey/internal/memscan"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/kms/epochs"
)

// newTokenSite returns a site whose machine has the token engine.
func newTokenSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	raw, err := os.ReadFile(s.path("trikey.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(raw), "engine: host", "engine: token", 1)
	if changed == string(raw) {
		t.Fatal("the configuration does not name its engine")
	}
	if err := os.WriteFile(s.path("trikey.yaml"), []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// wrapped creates a key and returns it as the key store has it: locked.
func (s *site) wrapped(index, name string) (locked epochs.Locked) {
	s.t.Helper()
	var made struct{ KCV, Wrapped string }
	s.ok("key", "create", "--index", index, "--name", name, "-o", "json").json(s.t, &made)
	if !strings.HasPrefix(made.KCV, "cmac-aes-direct:") {
		s.t.Errorf("key check value %s", made.KCV)
	}
	if err := locked.UnmarshalText([]byte(made.Wrapped)); err != nil {
		s.t.Fatal(err)
	}
	return locked
}

// unlocked opens a locked key with the site's destruction keys, as another machine with
// the same root can.
func (s *site) unlocked(index uint32, locked epochs.Locked) hsm.WrappedKey {
	s.t.Helper()
	machine := soft.New(soft.Config{Chip: hsmtest.NewChip(s.t)})
	if err := machine.Open(s.t.Context(), s.root("1", "2", "3")); err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = machine.Close() }()
	keys, err := epochs.Open(s.t.Context(), machine, s.path("data"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer keys.Close()
	items := []epochs.Item{{Leaf: epochs.Leaf{Index: index, Version: 1}, Locked: locked}}
	if err := keys.Unlock(items); err != nil || items[0].Wrapped == "" {
		s.t.Fatalf("unlock: %v", err)
	}
	return items[0].Wrapped
}

// TestTokenEngine is the main job of a site whose token does the work.
func TestTokenEngine(t *testing.T) {
	t.Parallel()
	s := newTokenSite(t)
	s.open()
	var status struct{ Engine string }
	s.ok("machine", "status", "-o", "json").json(t, &status)
	if status.Engine != "token" {
		t.Errorf("engine %q", status.Engine)
	}
	s.wrapped("7", "chat")
	s.wrapped("8", "other")
	if r := s.run("key", "create", "--index", "9", "--name", "sm", "--algorithm", "sm4-gcm"); r.code != 4 || !strings.Contains(r.err, "AES-256-GCM only") {
		t.Errorf("a key of SM4: %+v", r)
	}
	s.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)
	s.wantError(s.post("/v1/keys/7/encrypt", object{"plaintext": "", "algorithm": "chacha20-poly1305"}), 422, "algorithm_not_allowed")

	here, there := object{"app": "im", "conversation": "c-1"}, object{"conversation": "c-2"}
	sealed := s.encrypt("7", []byte("hello"), here)
	seen := s.post("/v1/ciphertext/inspect", object{"ciphertext": sealed})
	if seen.text("algorithm") != "aes-256-gcm-resident" || seen.body["suite"] != 97.0 || seen.body["key"] != 7.0 {
		t.Errorf("inspect: %s", seen.raw)
	}
	opens := func(key, ciphertext string, context object, want string) {
		t.Helper()
		a := s.post("/v1/keys/"+key+"/decrypt", object{"ciphertext": ciphertext, "context": context})
		if a.status != 200 || a.text("plaintext") != base64.StdEncoding.EncodeToString([]byte(want)) {
			t.Errorf("decrypt: %s", a.raw)
		}
	}
	opens("7", sealed, here, "hello")
	s.wantError(s.post("/v1/keys/7/decrypt", object{"ciphertext": sealed, "context": there}), 422, "decrypt_failed")
	moved := s.post("/v1/reencrypt", object{"ciphertext": sealed, "context": here, "to": object{"key": 8, "context": there}})
	if moved.status != 200 || moved.body["key"] != 8.0 {
		t.Fatalf("reencrypt: %s", moved.raw)
	}
	opens("8", moved.text("ciphertext"), there, "hello")
	s.ok("key", "rotate", "7")
	newest := s.post("/v1/reencrypt", object{"ciphertext": sealed, "context": here})
	if newest.status != 200 || newest.body["version"] != 2.0 {
		t.Errorf("reencrypt to the newest version: %s", newest.raw)
	}

	s.kill()
	s.open()
	opens("7", sealed, here, "hello")
	opens("8", moved.text("ciphertext"), there, "hello")
	opens("7", newest.text("ciphertext"), here, "hello")
	opens("7", s.encrypt("7", []byte{}, nil), nil, "")
}

// TestTokenMemory looks for a business key in the memory of a service that works with
// it. Who has three cards and the wrapped key can know it; the service must not. The
// token of this test is SoftHSM, whose memory is the service's: it masks its keys.
func TestTokenMemory(t *testing.T) {
	t.Parallel()
	s := newTokenSite(t)
	canary, needles := withCanary(nil)
	s.open(canary)
	key := s.unlocked(7, s.wrapped("7", "chat"))
	s.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)

	root := s.root("1", "2", "3")
	wrap, err := root.WrapKWKey()
	if err != nil {
		t.Fatal(err)
	}
	bind, err := root.BindKey()
	if err != nil {
		t.Fatal(err)
	}
	needles = append(needles, memscan.Needle{Name: "business key", Value: unwrap(t, wrap, key)},
		needle(t, "root", root.Key), needle(t, "wrapping key", wrap), needle(t, "binding key", bind))
	for range 3 {
		for i := range 100 {
			s.encrypt("7", fmt.Append(nil, i), nil)
		}
		s.clean(needles)
	}
}

// root rebuilds the root key of the site from its cards.
func (s *site) root(cards ...string) hsm.Root {
	s.t.Helper()
	var shares []*hsm.Share
	for _, card := range cards {
		envelope, err := secret.Move(s.object(card))
		if err != nil {
			s.t.Fatal(err)
		}
		share, err := hsm.ParseShare(envelope)
		if err != nil {
			s.t.Fatal(err)
		}
		shares = append(shares, share)
	}
	key, err := hsm.Rebuild(shares)
	if err != nil {
		s.t.Fatal(err)
	}
	return hsm.Root{Manifest: shares[0].Manifest, Key: key}
}

// unwrap undoes AES key wrap (RFC 3394, section 2.2.2).
func unwrap(t *testing.T, kek *secret.Bytes, w hsm.WrappedKey) []byte {
	t.Helper()
	_, _, _, sealed, err := w.Split()
	if err != nil {
		t.Fatal(err)
	}
	r := []byte(sealed[:hsm.WrapKWSize]) // A | R1 … R4
	err = kek.Use(func(k []byte) error {
		block, err := aes.NewCipher(k)
		if err != nil {
			return err
		}
		var b [16]byte
		for j := 5; j >= 0; j-- {
			for i := 4; i >= 1; i-- {
				binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(r)^uint64(4*j+i))
				copy(b[8:], r[8*i:])
				block.Decrypt(b[:], b[:])
				copy(r, b[:8])
				copy(r[8*i:8*i+8], b[8:])
			}
		}
		return nil
	})
	if err != nil || hex.EncodeToString(r[:8]) != "a6a6a6a6a6a6a6a6" {
		t.Fatalf("the wrapped key does not unwrap: %v", err)
	}
	return r[8:]
}
