package hsmtest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

// Run runs the contract suite on a machine of the host engine. open returns an open
// machine of the region Region; each call returns another machine with another root.
func Run(t *testing.T, open func(t *testing.T) hsm.Machine) { run(t, open, hostSuites) }

// suites are what a machine computes.
type suites struct {
	served []alg.ID                // of keys; the first is AES-256-GCM
	sealed func(key alg.ID) alg.ID // the suite of a ciphertext, by its key's

	purposes []hsm.Purpose // of keys
	streams  bool          // whether it seals them; one that does not refuses them
}

var hostSuites = suites{
	[]alg.ID{alg.AES256GCM, alg.AES128GCM, alg.ChaCha20Poly1305, alg.SM4CBCHMAC, alg.SM4GCM},
	func(id alg.ID) alg.ID { return id },
	[]hsm.Purpose{hsm.PurposeSeal, hsm.PurposeDeterministic, hsm.PurposeMAC, hsm.PurposeSign},
	true,
}

// other is a suite other than AES-256-GCM where the machine has one.
func (s suites) other() alg.ID { return s.served[len(s.served)-1] }

func run(t *testing.T, open func(t *testing.T) hsm.Machine, has suites) {
	for name, test := range map[string]func(*testing.T, *machine){
		"RoundTrip": testRoundTrip, "OtherSuites": testOtherSuites, "Tamper": testTamper, "Reencrypt": testReencrypt, "EachOnItsOwn": testEachOnItsOwn,
		"WrappedKeys": testWrappedKeys, "Records": testRecords, "Stream": testStream, "StreamPlaces": testStreamPlaces, "Forget": testForget, "NoRepeats": testNoRepeats, "Concurrent": testConcurrent,
		"Cancelled": testCancelled, "Status": testStatus,
		"Purposes": testPurposes, "Deterministic": testDeterministic, "Mac": testMac, "Sign": testSign, "DataKey": testDataKey, "Random": testRandom,
		"Import": testImport, "ImportRefused": testImportRefused, "Export": testExport, "Golden": testGolden,
		"OtherMachine": func(t *testing.T, m *machine) {
			testOtherMachine(t, m, &machine{open(t), t, has})
		},
	} {
		t.Run(name, func(t *testing.T) { test(t, &machine{open(t), t, has}) })
	}
}

type machine struct {
	hsm.Machine
	t *testing.T
	suites
}

func (m *machine) key(index, version uint32, id alg.ID) hsm.WrappedKey {
	m.t.Helper()
	return m.keyFor(hsm.PurposeSeal, index, version, id)
}

func (m *machine) keyFor(p hsm.Purpose, index, version uint32, id alg.ID) hsm.WrappedKey {
	m.t.Helper()
	k, err := m.GenerateKey(m.t.Context(), hsm.Binding{Index: index, Version: version, Algorithm: id, Purpose: p})
	if err != nil {
		m.t.Fatal(err)
	}
	if k.KCV == "" {
		m.t.Error("a key has no check value")
	}
	return k.Wrapped
}

func (m *machine) do(op hsm.Op) ([]byte, error) {
	m.t.Helper()
	ops := []hsm.Op{op}
	if err := m.Do(m.t.Context(), ops); err != nil {
		m.t.Fatal(err)
	}
	return ops[0].Output, ops[0].Err
}

func (m *machine) must(op hsm.Op) []byte {
	m.t.Helper()
	out, err := m.do(op)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

func (m *machine) refused(what string, want fault.Code, op hsm.Op) {
	m.t.Helper()
	if out, err := m.do(op); !errors.Is(err, want) || len(out) != len(op.Output) {
		m.t.Errorf("%s: %d bytes, %v; want %s", what, len(out), err, string(want))
	}
}

var (
	here  = envelope.Context{"conversation": "c-1"}.AppendCanonical(nil)
	there = envelope.Context{"conversation": "c-2"}.AppendCanonical(nil)
)

func testRoundTrip(t *testing.T, m *machine) {
	for _, id := range m.served {
		key := m.key(7, 1, id)
		for _, plaintext := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("0123456789"), 5000)} {
			sealed := m.must(hsm.Op{Kind: hsm.Encrypt, Key: key, Context: here, Input: plaintext, Output: []byte("kept")})
			if !bytes.HasPrefix(sealed, []byte("kept")) {
				t.Fatal("Output was not appended to")
			}
			sealed = sealed[4:]
			h, _, err := envelope.Parse(sealed)
			size := len(plaintext) + envelope.Overhead
			if id == alg.SM4CBCHMAC {
				size += 16 - len(plaintext)%16
			}
			if err != nil || h.Suite != byte(m.sealed(id)) || h.Index != 7 || h.Version != 1 || len(sealed) != size {
				t.Errorf("%s: header %+v, %d bytes, %v", id, h, len(sealed), err)
			}
			if got := m.must(hsm.Op{Kind: hsm.Decrypt, Key: key, Context: here, Input: sealed}); !bytes.Equal(got, plaintext) {
				t.Errorf("%s: %d bytes came back", id, len(got))
			}
		}
		// Any suite under any key, when the call says so.
		sealed := m.must(hsm.Op{Kind: hsm.Encrypt, Key: key, Algorithm: m.other(), Input: []byte("x")})
		if sealed[1] != byte(m.sealed(m.other())) || string(m.must(hsm.Op{Kind: hsm.Decrypt, Key: key, Input: sealed})) != "x" {
			t.Errorf("%s: sealed as suite %d", id, sealed[1])
		}
	}
}

// testOtherSuites: a suite that the machine does not compute is refused by name, also
// when it seals for a key that has another.
func testOtherSuites(t *testing.T, m *machine) {
	key := m.key(7, 1, alg.AES256GCM)
	for _, id := range append([]alg.ID{9}, hostSuites.served...) {
		if slices.Contains(m.served, id) {
			continue
		}
		if _, err := m.GenerateKey(t.Context(), hsm.Binding{Index: 7, Version: 1, Algorithm: id, Purpose: hsm.PurposeSeal}); !errors.Is(err, fault.AlgorithmNotAllowed) {
			t.Errorf("a key of %s: %v", id, err)
		}
		m.refused("sealing by "+id.String(), fault.AlgorithmNotAllowed, hsm.Op{Kind: hsm.Encrypt, Key: key, Algorithm: id, Input: []byte("x")})
	}
	// A ciphertext of an engine of the other kind: its suite is known, its key is not here.
	sealed := m.must(hsm.Op{Kind: hsm.Encrypt, Key: key, Input: []byte("x")})
	sealed[1] ^= byte(alg.AES256GCM ^ alg.AES256GCMResident)
	m.refused("a ciphertext of another engine", fault.AlgorithmNotAllowed, hsm.Op{Kind: hsm.Decrypt, Key: key, Input: sealed})
}

func testTamper(t *testing.T, m *machine) {
	key := m.key(7, 1, alg.AES256GCM)
	sealed := m.must(hsm.Op{Kind: hsm.Encrypt, Key: key, Context: here, Input: []byte("hello")})
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		m.refused("a changed byte", fault.DecryptFailed, hsm.Op{Kind: hsm.Decrypt, Key: key, Context: here, Input: bad})
		m.refused("a missing end", fault.DecryptFailed, hsm.Op{Kind: hsm.Decrypt, Key: key, Context: here, Input: sealed[:i]})
	}
	m.refused("another context", fault.DecryptFailed, hsm.Op{Kind: hsm.Decrypt, Key: key, Context: there, Input: sealed})
	m.refused("no context", fault.DecryptFailed, hsm.Op{Kind: hsm.Decrypt, Key: key, Input: sealed})
	m.refused("another key of the same name", fault.DecryptFailed, hsm.Op{Kind: hsm.Decrypt, Key: m.key(7, 1, alg.AES256GCM), Context: here, Input: sealed})
	m.refused("another version", fault.DecryptFailed, hsm.Op{Kind: hsm.Decrypt, Key: m.key(7, 2, alg.AES256GCM), Context: here, Input: sealed})
	m.refused("another index", fault.DecryptFailed, hsm.Op{Kind: hsm.Decrypt, Key: m.key(8, 1, alg.AES256GCM), Context: here, Input: sealed})
}

func testReencrypt(t *testing.T, m *machine) {
	from, to := m.key(7, 1, alg.AES256GCM), m.key(8, 4, m.other())
	sealed := m.must(hsm.Op{Kind: hsm.Encrypt, Key: from, Context: here, Input: []byte("hello")})
	moved := m.must(hsm.Op{Kind: hsm.Reencrypt, Key: from, To: to, Context: here, ToContext: there, Input: sealed})
	h, _, err := envelope.Parse(moved)
	if err != nil || h.Index != 8 || h.Version != 4 || h.Suite != byte(m.sealed(m.other())) {
		t.Errorf("%+v, %v", h, err)
	}
	if got := m.must(hsm.Op{Kind: hsm.Decrypt, Key: to, Context: there, Input: moved}); string(got) != "hello" {
		t.Errorf("opened as %q", got)
	}
	m.refused("reencrypt of another context", fault.DecryptFailed, hsm.Op{Kind: hsm.Reencrypt, Key: from, To: to, Context: there, ToContext: there, Input: sealed})
}

func testEachOnItsOwn(t *testing.T, m *machine) {
	key := m.key(7, 1, alg.AES256GCM)
	ops := make([]hsm.Op, 200)
	for i := range ops {
		ops[i] = hsm.Op{Kind: hsm.Encrypt, Key: key, Input: []byte{byte(i)}}
	}
	ops[50].Key = "nonsense"
	ops[60].Kind = 99
	ops[70].Algorithm = 77
	if err := m.Do(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	for i := range ops {
		if bad := i == 50 || i == 60 || i == 70; bad != (ops[i].Err != nil) {
			t.Errorf("operation %d: %v", i, ops[i].Err)
		}
	}
	if err := m.Do(t.Context(), nil); err != nil {
		t.Errorf("no operations: %v", err)
	}
}

func testWrappedKeys(t *testing.T, m *machine) {
	key := m.key(7, 3, m.other())
	h, err := key.Header()
	if err != nil || h.Index != 7 || h.Version != 3 || h.Algorithm != m.other() || h.Region != Region || h.Purpose != hsm.PurposeSeal || h.Exportable {
		t.Errorf("%+v, %v", h, err)
	}
	var again hsm.WrappedKey
	if err := again.UnmarshalText([]byte(key.String())); err != nil || again != key {
		t.Errorf("the text form does not survive: %v", err)
	}
	for i := range len(key) {
		bad := []byte(key)
		bad[i] ^= 1
		if _, err := m.do(hsm.Op{Kind: hsm.Encrypt, Key: hsm.WrappedKey(bad), Input: []byte("x")}); err == nil {
			t.Errorf("a wrapped key with byte %d changed was used", i)
		}
	}
}

func testRecords(t *testing.T, m *machine) {
	id := hsm.RecordID{Name: "apps/a", Revision: 3}
	sealed := m.must(hsm.Op{Kind: hsm.SealRecord, Record: id, Input: []byte("content")})
	if bytes.Contains(sealed, []byte("content")) {
		t.Error("a sealed record shows its content")
	}
	if got := m.must(hsm.Op{Kind: hsm.OpenRecord, Record: id, Input: sealed}); string(got) != "content" {
		t.Errorf("opened as %q", got)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		m.refused("a changed record", fault.RecordDamaged, hsm.Op{Kind: hsm.OpenRecord, Record: id, Input: bad})
	}
	for _, other := range []hsm.RecordID{{Name: "apps/b", Revision: 3}, {Name: "apps/a", Revision: 2}, {Name: "apps/a", Revision: 4}, {}} {
		m.refused("another record's name", fault.RecordDamaged, hsm.Op{Kind: hsm.OpenRecord, Record: other, Input: sealed})
	}
}

func testNoRepeats(t *testing.T, m *machine) {
	key := m.key(7, 1, alg.AES256GCM)
	seen := map[string]bool{}
	ops := make([]hsm.Op, 1000)
	for range 10 {
		for i := range ops {
			ops[i] = hsm.Op{Kind: hsm.Encrypt, Key: key, Input: []byte("the same text")}
		}
		if err := m.Do(t.Context(), ops); err != nil {
			t.Fatal(err)
		}
		for i := range ops {
			if seen[string(ops[i].Output[10:38])] {
				t.Fatal("a salt and nonce came twice")
			}
			seen[string(ops[i].Output[10:38])] = true
		}
	}
}

func testConcurrent(t *testing.T, m *machine) {
	keys := []hsm.WrappedKey{m.key(1, 1, alg.AES256GCM), m.key(2, 1, m.other()), m.key(3, 1, m.served[len(m.served)/2])}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 100 {
				key := keys[(g+i)%len(keys)]
				seal := []hsm.Op{{Kind: hsm.Encrypt, Key: key, Context: here, Input: []byte{byte(g), byte(i)}}}
				if err := m.Do(t.Context(), seal); err != nil || seal[0].Err != nil {
					t.Error(err, seal[0].Err)
					return
				}
				open := []hsm.Op{{Kind: hsm.Decrypt, Key: key, Context: here, Input: seal[0].Output}}
				if err := m.Do(t.Context(), open); err != nil || !bytes.Equal(open[0].Output, []byte{byte(g), byte(i)}) {
					t.Error(err, open[0].Err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func testCancelled(t *testing.T, m *machine) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Do(ctx, []hsm.Op{{Kind: hsm.Encrypt}}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func testStatus(t *testing.T, m *machine) {
	s, err := m.Status(t.Context())
	if err != nil || s.State != hsm.Open || s.KCV == "" || s.Region != Region || s.Generation == 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

// testOtherMachine: what one root wrapped or sealed, another does not open.
func testOtherMachine(t *testing.T, m, other *machine) {
	key := m.key(7, 1, alg.AES256GCM)
	sealed := m.must(hsm.Op{Kind: hsm.Encrypt, Key: key, Input: []byte("x")})
	other.refused("another root's key", fault.RecordDamaged, hsm.Op{Kind: hsm.Decrypt, Key: key, Input: sealed})
	record := m.must(hsm.Op{Kind: hsm.SealRecord, Record: hsm.RecordID{Name: "n"}, Input: []byte("x")})
	other.refused("another root's record", fault.RecordDamaged, hsm.Op{Kind: hsm.OpenRecord, Record: hsm.RecordID{Name: "n"}, Input: record})
	if err := errors.Join(m.Close(), m.Close()); err != nil {
		t.Error(err)
	}
	if err := m.Do(t.Context(), []hsm.Op{{Kind: hsm.Decrypt, Key: key, Input: sealed}}); !errors.Is(err, fault.Sealed) {
		t.Errorf("after Close: %v", err)
	}
}
