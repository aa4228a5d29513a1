package keyimport

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest/kwp"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

var update = flag.Bool("update", false, "write the golden vectors anew")

const vectorFile = "../../docs/vectors/import.json"

type vector struct {
	Name       string `json:"name"`
	PrivateKey string `json:"private_key"`
	KEK        string `json:"kek"`
	Key        string `json:"key"`
	KCV        string `json:"kcv"`
	Blob       string `json:"blob"`
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func vectors(t testing.TB) (all []vector) {
	t.Helper()
	raw, err := os.ReadFile(vectorFile)
	if err == nil {
		err = json.Unmarshal(raw, &all, json.RejectUnknownMembers(true))
	}
	if err != nil || len(all) < 2 {
		t.Fatalf("%d vectors, %v", len(all), err)
	}
	return all
}

func writeVectors(t *testing.T) {
	var all []vector
	for _, name := range []string{"a key", "another key"} {
		key, kek := sha256.Sum256([]byte(name)), sha256.Sum256([]byte("kek of "+name))
		private, err := rsa.GenerateKey(rand.Reader, modulusBits)
		if err != nil {
			t.Fatal(err)
		}
		head, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &private.PublicKey, kek[:], nil)
		if err != nil {
			t.Fatal(err)
		}
		kcv, err := alg.KCV(key[:])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, vector{
			Name: name, PrivateKey: hex.EncodeToString(x509.MarshalPKCS1PrivateKey(private)), KEK: hex.EncodeToString(kek[:]), Key: hex.EncodeToString(key[:]),
			KCV: kcv, Blob: hex.EncodeToString(append(head, kwp.Wrap(t, kek[:], key[:])...)),
		})
	}
	raw, err := json.Marshal(all, jsontext.WithIndent("  "))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorFile, append(raw, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestGolden(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	for _, v := range vectors(t) {
		key, want := make([]byte, 32), unhex(t, v.Key)
		if err := open(key, unhex(t, v.PrivateKey), unhex(t, v.Blob)); err != nil || !bytes.Equal(key, want) {
			t.Errorf("%s: %x, %v", v.Name, key, err)
		}
		if kcv, err := alg.KCV(key); err != nil || kcv != v.KCV {
			t.Errorf("%s: %s, %v", v.Name, kcv, err)
		}
	}
}

// An import key is good until it expires, and leaves no protected memory behind.
func TestExpires(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d := New(func() time.Time { return now })
	_, before := secret.Usage()
	first, err := d.Begin()
	if err != nil || first.Expires != now.Add(Life) {
		t.Fatal(first.Expires, err)
	}
	now = now.Add(Life - time.Second)
	second, err := d.Begin()
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Second)
	if _, err := d.Finish(first.ID, make([]byte, BlobSize)); !errors.Is(err, fault.NotFound) {
		t.Errorf("expired: %v", err)
	}
	if _, err := d.Finish(second.ID, make([]byte, BlobSize)); !errors.Is(err, fault.BadRequest) {
		t.Errorf("a blob of zeros: %v", err)
	}
	if _, err := d.Begin(); err != nil {
		t.Fatal(err)
	}
	d.Clear()
	if _, after := secret.Usage(); after != before {
		t.Errorf("%d bytes of protected memory are left", after-before)
	}
	if _, err := d.Finish(hsm.NewID(), nil); !errors.Is(err, fault.NotFound) {
		t.Errorf("no such import: %v", err)
	}
}

// FuzzOpen: no blob but the right one opens, and none breaks the machine.
func FuzzOpen(f *testing.F) {
	v := vectors(f)[0]
	der, good, want := unhex(f, v.PrivateKey), unhex(f, v.Blob), unhex(f, v.Key)
	f.Add(good)
	f.Add([]byte(nil))
	f.Add(good[:oaepSize])
	f.Add(make([]byte, BlobSize))
	// The outer layer right, and another inner one: what a holder of the public key can send.
	f.Add(append(bytes.Clone(good[:oaepSize]), make([]byte, kwpSize)...))
	f.Fuzz(func(t *testing.T, blob []byte) {
		key := make([]byte, hsm.BusinessKeySize)
		err := open(key, der, blob)
		switch {
		case bytes.Equal(blob, good):
			if err != nil || !bytes.Equal(key, want) {
				t.Errorf("%x, %v", key, err)
			}
		case err == nil:
			t.Errorf("a blob that nobody made opens: %x", blob)
		case !errors.Is(err, fault.BadRequest) || !bytes.Equal(key, make([]byte, len(key))):
			t.Errorf("%v, %x", err, key)
		}
	})
}

// FuzzUnwrapKWP unwraps what was wrapped, and nothing that was changed.
func FuzzUnwrapKWP(f *testing.F) {
	f.Add(make([]byte, 32), make([]byte, 32), uint16(0), byte(1))
	f.Add(bytes.Repeat([]byte{7}, 32), []byte("nine byte"), uint16(23), byte(0x80))
	f.Add(bytes.Repeat([]byte{7}, 32), []byte("a key of seventeen"), uint16(9), byte(0))
	f.Fuzz(func(t *testing.T, kek, key []byte, at uint16, flip byte) {
		if len(kek) != 32 || len(key) < 9 || len(key) > 1024 {
			return
		}
		wrapped := kwp.Wrap(t, kek, key)
		got := make([]byte, len(key))
		if err := alg.UnwrapKWP(got, kek, wrapped); err != nil || !bytes.Equal(got, key) {
			t.Fatalf("%x, %v", got, err)
		}
		wrapped[int(at)%len(wrapped)] ^= flip
		err := alg.UnwrapKWP(got, kek, wrapped)
		if (err == nil) != (flip == 0) || err != nil && !bytes.Equal(got, make([]byte, len(got))) {
			t.Errorf("changed by %x: %x, %v", flip, got, err)
		}
	})
}
