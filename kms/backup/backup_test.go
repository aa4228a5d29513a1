package backup_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/backup"
)

// signer has an identity key of its own, as each machine has.
type signer struct{ key ed25519.PrivateKey }

func newSigner(t *testing.T) signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key}
}

func (s signer) Sign(_ context.Context, context string, message []byte) (hsm.Signature, error) {
	public := s.key.Public().(ed25519.PublicKey)
	return hsm.Signature{PublicKey: public, Fingerprint: hsm.Fingerprint(public), Signature: ed25519.Sign(s.key, hsm.SignedBytes(context, message))}, nil
}

func header(t *testing.T, m hsm.Machine) backup.Header {
	t.Helper()
	s, err := m.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := hsm.Record{Manifest: hsm.Manifest{MachineID: s.MachineID, RootID: s.RootID, Generation: s.Generation, SplitID: s.SplitID, Threshold: 3, Shares: 3}}
	return backup.Header{ID: hsm.NewID(), Created: time.Now(), Record: r, Epochs: hsm.NewID()}
}

func write(t *testing.T, m hsm.Machine, h backup.Header, sign signer, entries []keystore.Write) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := backup.NewWriter(t.Context(), m, h, &out)
	if err == nil {
		err = w.Add(entries)
	}
	if err == nil {
		_, err = w.Finish(backup.Summary{Revision: 7, Records: len(entries)}, sign)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func entries(n, size int) (all []keystore.Write) {
	for i := range n {
		all = append(all, keystore.Write{Name: fmt.Sprintf("g1/%04d", i), Value: bytes.Repeat([]byte{byte(i)}, size), Delete: i%7 == 6})
		if i%7 == 6 {
			all[i].Value = nil
		}
	}
	return all
}

// What is written is read, in order, whatever sizes it has.
func TestRoundTrip(t *testing.T) {
	m := hsmtest.Open(t)
	for _, c := range []struct{ n, size int }{{0, 0}, {1, 0}, {1, 64<<10 - 14}, {1, keystore.MaxValue}, {300, 999}, {5, 200_000}} {
		all := entries(c.n, c.size)
		h := header(t, m)
		raw := write(t, m, h, newSigner(t), all)
		var got []keystore.Write
		checked, err := backup.Read(t.Context(), bytes.NewReader(raw), m, func(w []keystore.Write) error { got = append(got, w...); return nil })
		if err != nil || len(got) != len(all) || checked.Summary.Revision != 7 || checked.Header.ID != h.ID {
			t.Fatalf("%+v: %d of %d entries, %+v: %v", c, len(got), len(all), checked.Summary, err)
		}
		for i := range all {
			if got[i].Name != all[i].Name || !bytes.Equal(got[i].Value, all[i].Value) || got[i].Delete != all[i].Delete {
				t.Fatalf("%+v: entry %d is %.100v", c, i, got[i])
			}
		}
	}
}

// Every byte counts, for who has no machine too; and so does the end.
func TestAltered(t *testing.T) {
	m := hsmtest.Open(t)
	raw := write(t, m, header(t, m), newSigner(t), entries(20, 50))
	refused := func(what string, bad []byte, machine hsm.Machine) {
		t.Helper()
		_, err := backup.Read(t.Context(), bytes.NewReader(bad), machine, func([]keystore.Write) error { return nil })
		if fault.CodeOf(err) != fault.BackupDamaged && fault.CodeOf(err) != fault.BackupForeign {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 1 << (i % 8)
		refused(fmt.Sprintf("byte %d", i), bad, nil)
		if i%11 == 0 {
			refused(fmt.Sprintf("byte %d, with the machine", i), bad, m)
		}
		refused(fmt.Sprintf("%d bytes", i), raw[:i], nil)
	}
	refused("a byte more", append(bytes.Clone(raw), 0), nil)
	refused("another machine", raw, hsmtest.Open(t))
}

// Somebody who signs with another identity can say what they like in the clear, but not
// about what the root key has sealed.
func TestForged(t *testing.T) {
	m, forger := hsmtest.Open(t), newSigner(t)
	raw := write(t, m, header(t, m), newSigner(t), entries(20, 50))
	const tail = ed25519.PublicKeySize + ed25519.SignatureSize
	start := bytes.LastIndex(raw, []byte(`{"header"`))
	manifest := bytes.Replace(raw[start:len(raw)-tail], []byte(`"destructions":0`), []byte(`"destructions":9`), 1)
	signed, err := forger.Sign(t.Context(), "backup", manifest)
	if err != nil {
		t.Fatal(err)
	}
	forged := append(append(append(bytes.Clone(raw[:start]), manifest...), signed.PublicKey...), signed.Signature...)
	read := func(m hsm.Machine) (backup.Checked, error) {
		return backup.Read(t.Context(), bytes.NewReader(forged), m, func([]keystore.Write) error { return nil })
	}
	if c, err := read(nil); err != nil || c.Summary.Destructions != 9 || c.Fingerprint != signed.Fingerprint {
		t.Errorf("the forgery is no good one: %+v, %v", c, err)
	}
	if _, err := read(m); fault.CodeOf(err) != fault.BackupDamaged {
		t.Errorf("with the machine: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("TKBACK1\n\x00\x00\x00\x02{}\x00\x00\x00\x01x\x00\x00\x00\x00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := backup.Read(t.Context(), bytes.NewReader(raw), nil, nil); err == nil {
			t.Error("it was made by nobody, and is good")
		}
	})
}

// TestForgedHeader: what stands in the clear at the beginning, the machine's record and the
// files that a restore lays out, is under the root key too.
func TestForgedHeader(t *testing.T) {
	m, forger := hsmtest.Open(t), newSigner(t)
	raw := write(t, m, header(t, m), newSigner(t), entries(20, 50))
	const begin, tail = len("TKBACK1\n"), ed25519.PublicKeySize + ed25519.SignatureSize
	cut := begin + 4 + int(binary.BigEndian.Uint32(raw[begin:]))
	start := bytes.LastIndex(raw, []byte(`{"header"`))
	var manifest backup.Manifest
	if err := json.Unmarshal(raw[start:len(raw)-tail], &manifest); err != nil {
		t.Fatal(err)
	}
	manifest.Header.Files = map[string][]byte{"store.db": []byte("an older key store")}
	head, err := json.Marshal(manifest.Header, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	forged := append(binary.BigEndian.AppendUint32(bytes.Clone(raw[:begin]), uint32(len(head))), head...)
	forged = append(forged, raw[cut:start-4]...)
	sum := sha256.Sum256(forged)
	manifest.SHA256 = sum[:]
	said, err := json.Marshal(manifest, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := forger.Sign(t.Context(), "backup", said)
	if err != nil {
		t.Fatal(err)
	}
	forged = append(append(binary.BigEndian.AppendUint32(forged, uint32(len(said))), said...), append(signed.PublicKey, signed.Signature...)...)
	if c, err := backup.Read(t.Context(), bytes.NewReader(forged), nil, nil); err != nil || len(c.Header.Files) != 1 {
		t.Fatalf("the forgery is no good one: %v", err)
	}
	_, err = backup.Read(t.Context(), bytes.NewReader(forged), m, func([]keystore.Write) error { return nil })
	if fault.CodeOf(err) != fault.BackupDamaged {
		t.Errorf("with the machine: %v", err)
	}
}
