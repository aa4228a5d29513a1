package hsmtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
)

// testExport: a key that was made exportable goes out wrapped for the receiver, and is the
// key that seals; any other stays. An engine whose keys stay where they are says so.
func testExport(t *testing.T, m *machine) {
	receiver, public := rsaKey(t, 3072)
	b := hsm.Binding{Index: 7, Version: 3, Algorithm: alg.AES256GCM, Purpose: hsm.PurposeSeal, Exportable: true}
	made, err := m.GenerateKey(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	export := hsm.Op{Kind: hsm.Export, Key: made.Wrapped, Input: public}
	if _, ok := m.importer(); !ok {
		m.refused("export", fault.AlgorithmNotAllowed, export)
		return
	}
	m.refused("a key that is not exportable", fault.Forbidden, hsm.Op{Kind: hsm.Export, Key: m.key(7, 4, alg.AES256GCM), Input: public})
	flagged := []byte(m.key(7, 4, alg.AES256GCM))
	flagged[16] |= 1
	m.refused("a key whose header says that it is", fault.RecordDamaged, hsm.Op{Kind: hsm.Export, Key: hsm.WrappedKey(flagged), Input: public})

	export.Output = []byte("kept")
	blob := m.must(export)
	if again := m.must(export); !bytes.HasPrefix(blob, []byte("kept")) || len(blob) != 4+384+40 || bytes.Equal(blob, again) {
		t.Fatalf("%d bytes, and the same again: %t", len(blob), bytes.Equal(blob, again))
	}
	blob = blob[4:]
	kek, err := rsa.DecryptOAEP(sha256.New(), nil, receiver, blob[:384], nil)
	key := make([]byte, hsm.BusinessKeySize)
	if err != nil || len(kek) != 32 || alg.UnwrapKWP(key, kek, blob[384:]) != nil {
		t.Fatalf("the receiver cannot open it: %v", err)
	}
	if kcv, err := alg.KCV(key); err != nil || kcv != made.KCV {
		t.Errorf("key check value %s, want %s", kcv, made.KCV)
	}
	sealed := m.must(hsm.Op{Kind: hsm.Encrypt, Key: made.Wrapped, Context: here, Input: []byte("hello")})
	b.Exportable = false
	taken := m.importKey(key, b)
	if got := m.must(hsm.Op{Kind: hsm.Decrypt, Key: taken, Context: here, Input: sealed}); string(got) != "hello" {
		t.Errorf("the key that came out opens %q", got)
	}

	_, small := rsaKey(t, 2048)
	curve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	elliptical, err := x509.MarshalPKIXPublicKey(&curve.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for what, der := range map[string][]byte{
		"no receiver": nil, "a receiver of 2048 bits": small, "a receiver that is not RSA": elliptical, "bytes behind the receiver": append(bytes.Clone(public), 0),
	} {
		m.refused(what, fault.BadRequest, hsm.Op{Kind: hsm.Export, Key: made.Wrapped, Input: der})
	}
}

func rsaKey(t *testing.T, bits int) (*rsa.PrivateKey, []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, public
}
