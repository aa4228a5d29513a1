package kms_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/hsm/keyexport"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/policy"
)

func (s *site) createFor(service *kms.Service, n kms.NewKey) *kms.Key {
	s.t.Helper()
	k, err := service.CreateKey(s.t.Context(), "test", n)
	if err != nil {
		s.t.Fatal(err)
	}
	return k
}

// Every operation needs its own grant, and the grant of none other.
func TestKeyedGrants(t *testing.T) {
	s := newSite(t)
	service := s.service()
	s.createFor(service, kms.NewKey{Index: 1})
	s.createFor(service, kms.NewKey{Index: 2, Purpose: hsm.PurposeMAC})
	s.createFor(service, kms.NewKey{Index: 3, Purpose: hsm.PurposeSign})
	all := &auth.Caller{App: &auth.App{Grants: grants(t, "keys=*;ops=mac,sign")}}
	made := does(t, service, all, kms.Call{Kind: hsm.Mac, Key: "2", Input: []byte("m")}, kms.Call{Kind: hsm.Sign, Key: "3", Input: []byte("m")})
	for i, test := range []struct {
		grant string
		call  kms.Call
	}{
		{"datakey", kms.Call{Kind: hsm.DataKey, Key: "1", Size: 32}},
		{"mac", kms.Call{Kind: hsm.Mac, Key: "2"}},
		{"verify", kms.Call{Kind: hsm.VerifyMac, Key: "2", Input: []byte("m"), Signature: made[0].Output}},
		{"sign", kms.Call{Kind: hsm.Sign, Key: "3"}},
		{"verify", kms.Call{Kind: hsm.Verify, Key: "3", Input: []byte("m"), Signature: made[1].Output}},
	} {
		for _, op := range []string{"encrypt", "decrypt", "reencrypt-from", "reencrypt-to", "datakey", "sign", "verify", "mac"} {
			app := &auth.Caller{App: &auth.App{Grants: grants(t, "keys="+test.call.Key+";ops="+op)}}
			err := does(t, service, app, test.call)[0].Err
			if op == test.grant && err != nil || op != test.grant && !errors.Is(err, fault.Forbidden) {
				t.Errorf("call %d with the grant %s: %v", i, op, err)
			}
		}
		other := &auth.Caller{App: &auth.App{Grants: grants(t, "keys=9;ops=datakey,sign,verify,mac")}}
		if err := does(t, service, other, test.call)[0].Err; !errors.Is(err, fault.Forbidden) {
			t.Errorf("call %d with grants for another key: %v", i, err)
		}
	}
	if c := does(t, service, &auth.Caller{App: &auth.App{}}, kms.Call{Kind: hsm.Random, Size: 32})[0]; c.Err != nil || len(c.Output) != 32 {
		t.Errorf("random needs no grant: %v", c.Err)
	}
}

// A new version makes new codes and signatures; those of the one before are verified with it.
func TestKeyedVersions(t *testing.T) {
	s := newSite(t)
	service := s.service()
	app := &auth.Caller{App: &auth.App{Grants: grants(t, "keys=*;ops=mac,sign,verify")}}
	for _, test := range []struct {
		index        uint32
		purpose      hsm.Purpose
		make, verify hsm.Kind
	}{{1, hsm.PurposeMAC, hsm.Mac, hsm.VerifyMac}, {2, hsm.PurposeSign, hsm.Sign, hsm.Verify}} {
		k := s.createFor(service, kms.NewKey{Index: test.index, Purpose: test.purpose, Exportable: true})
		first := does(t, service, app, kms.Call{Kind: test.make, Key: k.Name, Input: []byte("m")})[0]
		rotated, err := service.RotateKey(t.Context(), "test", test.index)
		if err != nil || rotated.Purpose() != test.purpose || !rotated.Exportable() {
			t.Fatal(rotated, err)
		}
		second := does(t, service, app, kms.Call{Kind: test.make, Key: k.Name, Input: []byte("m")})[0]
		if first.KeyVersion != 1 || second.KeyVersion != 2 || bytes.Equal(first.Output, second.Output) {
			t.Errorf("%s: versions %d and %d", test.purpose, first.KeyVersion, second.KeyVersion)
		}
		for version, want := range map[uint32]error{0: fault.SignatureInvalid, 1: nil, 2: fault.SignatureInvalid, 3: fault.KeyNotFound} {
			c := does(t, service, app, kms.Call{Kind: test.verify, Key: k.Name, Input: []byte("m"), Signature: first.Output, Version: version})[0]
			if !errors.Is(c.Err, want) {
				t.Errorf("%s: version %d: %v, want %v", test.purpose, version, c.Err, want)
			}
		}
	}
}

// A blind index is equal where context and value are, and nowhere else; it is no plain code.
func TestBlindIndex(t *testing.T) {
	s := newSite(t)
	service := s.service()
	s.createFor(service, kms.NewKey{Index: 1, Purpose: hsm.PurposeMAC})
	app := &auth.Caller{App: &auth.App{Grants: grants(t, "keys=1;ops=mac")}}
	index := func(context envelope.Context, value string) string {
		return string(does(t, service, app, kms.Call{Kind: hsm.Mac, Key: "1", Index: true, Context: context, Input: []byte(value)})[0].Output)
	}
	seen := map[string]string{}
	for name, code := range map[string]string{
		"a": index(envelope.Context{"f": "phone"}, "123"), "other value": index(envelope.Context{"f": "phone"}, "124"),
		"other context": index(envelope.Context{"f": "name"}, "123"), "no context": index(nil, "123"),
		"border": index(envelope.Context{"f": "phone1"}, "23"),
		"plain":  string(does(t, service, app, kms.Call{Kind: hsm.Mac, Key: "1", Input: []byte("123")})[0].Output),
	} {
		if len(code) != 32 || seen[code] != "" {
			t.Errorf("%s is as %s", name, seen[code])
		}
		seen[code] = name
	}
	if seen[index(envelope.Context{"f": "phone"}, "123")] != "a" {
		t.Error("a value has two indexes")
	}
}

func TestJWS(t *testing.T) {
	s := newSite(t)
	service := s.service()
	app := &auth.Caller{App: &auth.App{Grants: grants(t, "keys=*;ops=sign,verify")}}
	s.createFor(service, kms.NewKey{Index: 1, Purpose: hsm.PurposeSign})
	s.createFor(service, kms.NewKey{Index: 2, Purpose: hsm.PurposeSign, Algorithm: alg.ECDSAP256})
	s.createFor(service, kms.NewKey{Index: 3, Purpose: hsm.PurposeSign, Algorithm: alg.SM2})
	s.createFor(service, kms.NewKey{Index: 4, Purpose: hsm.PurposeMAC})
	sign := func(key string) kms.Call {
		return does(t, service, app, kms.Call{Kind: hsm.Sign, Key: key, Input: []byte(`{"sub":"u"}`), JWS: &kms.JWS{Type: "JWT"}})[0]
	}
	verify := func(key, jws string) kms.Call {
		return does(t, service, app, kms.Call{Kind: hsm.Verify, Key: key, Input: []byte(jws), JWS: &kms.JWS{}})[0]
	}
	for key, header := range map[string]string{"1": `{"alg":"EdDSA","kid":"1.1","typ":"JWT"}`, "2": `{"alg":"ES256","kid":"2.1","typ":"JWT"}`} {
		c := sign(key)
		jws := string(c.Output)
		parts := strings.Split(jws, ".")
		if got, _ := base64.RawURLEncoding.DecodeString(parts[0]); c.Err != nil || string(got) != header || len(parts) != 3 {
			t.Fatalf("%s, %v", jws, c.Err)
		}
		if c := verify(key, jws); c.Err != nil || string(c.Output) != `{"sub":"u"}` {
			t.Errorf("%q, %v", c.Output, c.Err)
		}
		with := func(header string) string {
			return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + parts[1] + "." + parts[2]
		}
		for _, bad := range []string{
			"", ".", "..", parts[0] + "." + parts[1], jws + ".", jws + "=", jws + "\n", parts[0] + "." + parts[1] + "\n." + parts[2], parts[0] + "." + parts[1] + ".",
			with(`{"alg":"none","kid":"` + key + `.1"}`), with(`{"alg":"HS256","kid":"` + key + `.1"}`), with(header[:len(header)-1] + `,"crit":["x"]}`),
			with(header[:len(header)-1] + `,"jwk":{}}`), with(strings.Replace(header, ".1", ".2", 1)), with(strings.Replace(header, "JWT", "jwt", 1)), with("{}"), with(`[]`),
			parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"v"}`)) + "." + parts[2],
		} {
			if c := verify(key, bad); !errors.Is(c.Err, fault.SignatureInvalid) || len(c.Output) != 0 {
				t.Errorf("%q is valid: %v", bad, c.Err)
			}
		}
		// After a rotation the JWS names the version that made it.
		if _, err := service.RotateKey(t.Context(), "test", k32(key)); err != nil {
			t.Fatal(err)
		}
		if c := verify(key, jws); c.Err != nil || c.KeyVersion != 1 {
			t.Errorf("after a rotation: %v", c.Err)
		}
		if c := sign(key); c.KeyVersion != 2 || verify(key, string(c.Output)).KeyVersion != 2 {
			t.Errorf("signed with version %d, %v", c.KeyVersion, c.Err)
		}
	}
	if c := verify("2", string(sign("1").Output)); !errors.Is(c.Err, fault.SignatureInvalid) {
		t.Errorf("another key's: %v", c.Err)
	}
	for _, key := range []string{"3", "4"} {
		if c := sign(key); !errors.Is(c.Err, fault.AlgorithmNotAllowed) {
			t.Errorf("key %s: %v", key, c.Err)
		}
	}
}

func k32(key string) uint32 { return uint32(key[0] - '0') }

func TestPublished(t *testing.T) {
	s := newSite(t)
	service := s.service()
	s.createFor(service, kms.NewKey{Index: 1, Purpose: hsm.PurposeSign})
	s.createFor(service, kms.NewKey{Index: 2, Purpose: hsm.PurposeSign, Published: true})
	if _, err := service.RotateKey(t.Context(), "test", 2); err != nil {
		t.Fatal(err)
	}
	got, err := service.Published()
	if err != nil || len(got) != 2 || got[0].Index != 2 || got[0].Version != 1 || got[1].Version != 2 || len(got[1].Public) != 32 || bytes.Equal(got[0].Public, got[1].Public) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := service.CreateKey(t.Context(), "test", kms.NewKey{Published: true}); !errors.Is(err, fault.BadRequest) {
		t.Errorf("a published key that seals: %v", err)
	}
	// Another node, or this one started again, knows them from the store.
	again, err := s.service().Published()
	if err != nil || len(again) != 2 || !bytes.Equal(again[1].Public, got[1].Public) {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestImportAndExport(t *testing.T) {
	s := newSite(t)
	service := s.service()
	begun, err := service.BeginImport(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	raw := bytes.Repeat([]byte{9}, 32)
	blob := hsmtest.Blob(t, begun.Public, raw)
	finish := func(n kms.NewKey) (*kms.Key, error) {
		return service.FinishImport(t.Context(), "test", n, begun.ID, blob)
	}
	s.createFor(service, kms.NewKey{Index: 1, Name: "taken"})
	for _, n := range []kms.NewKey{{Index: 1}, {Index: 2, Name: "taken"}} { // refusals that spend nothing
		if _, err := finish(n); !errors.Is(err, fault.Conflict) {
			t.Errorf("%+v: %v", n, err)
		}
	}
	if _, err := finish(kms.NewKey{Index: 2, Purpose: hsm.PurposeSign, Algorithm: alg.ECDSAP256}); !errors.Is(err, fault.AlgorithmNotAllowed) {
		t.Errorf("a derived key: %v", err)
	}
	k, err := finish(kms.NewKey{Index: 2, Name: "partner", Exportable: true})
	if err != nil {
		t.Fatal(err)
	}
	if kcv, _ := alg.KCV(raw); k.Newest().KCV != kcv || !k.Newest().Imported || !k.Exportable() {
		t.Errorf("%+v", k)
	}
	if _, err := finish(kms.NewKey{Index: 3}); !errors.Is(err, fault.NotFound) {
		t.Errorf("twice: %v", err)
	}
	if rotated, err := service.RotateKey(t.Context(), "test", 2); err != nil || rotated.Newest().Imported {
		t.Errorf("a version made here: %+v, %v", rotated, err)
	}
	// Out again, and in under the version that it had.
	if begun, err = service.BeginImport(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	out, err := service.ExportKey(t.Context(), "test", "partner", 1, begun.Public)
	if err != nil || out.Version.KCV != k.Newest().KCV || out.Version.Marks.Exported.IsZero() || out.Receiver != keyexport.Fingerprint(begun.Public) {
		t.Fatalf("%+v, %v", out, err)
	}
	again, err := service.FinishImport(t.Context(), "test", kms.NewKey{Index: 3, Version: 4}, begun.ID, out.Wrapped)
	if err != nil || again.Newest().KCV != k.Newest().KCV || again.Newest().Version != 4 || again.Exportable() {
		t.Errorf("%+v, %v", again, err)
	}
	refused := func(ref string, version uint32, want fault.Code, text string) {
		t.Helper()
		if out, err := service.ExportKey(t.Context(), "test", ref, version, begun.Public); !errors.Is(err, want) || !strings.Contains(err.Error(), text) || out.Wrapped != nil {
			t.Errorf("export of %s version %d: %v", ref, version, err)
		}
	}
	refused("taken", 0, fault.Forbidden, "was not made exportable")
	refused("nobody", 0, fault.KeyNotFound, "")
	refused("partner", 9, fault.NotFound, "no version 9")
	s.createFor(service, kms.NewKey{Index: 5, Name: "curve", Purpose: hsm.PurposeSign, Algorithm: alg.ECDSAP256, Exportable: true})
	refused("curve", 0, fault.AlgorithmNotAllowed, "derived")
	if _, err := service.CompromiseKey(t.Context(), "test", 2, 1); err != nil {
		t.Fatal(err)
	}
	refused("partner", 1, fault.KeyDisabled, "compromised")
	if _, err := service.ScheduleDestroy(t.Context(), "test", 2, 2, 7); err != nil {
		t.Fatal(err)
	}
	refused("partner", 2, fault.KeyDisabled, "to be destroyed")
	if _, err := service.CancelDestroy(t.Context(), "test", 2, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := service.SuspendKey(t.Context(), "test", 2); err != nil {
		t.Fatal(err)
	}
	refused("partner", 2, fault.KeyDisabled, "suspended")
}

// The life of a key is that of its codes and signatures too: only an active version makes
// them; one that ended, but is neither refused nor destroyed, verifies what it made.
func TestKeyedLife(t *testing.T) {
	s := newSite(t)
	service := s.stepped(newClock(), newSigner(t))
	app := &auth.Caller{App: &auth.App{Grants: grants(t, "keys=*;ops=mac,sign,verify,datakey")}}
	trusted := &auth.Caller{App: &auth.App{Grants: grants(t, "keys=*;ops=verify,decrypt-compromised")}}
	s.createFor(service, kms.NewKey{Index: 1, Purpose: hsm.PurposeMAC})
	s.createFor(service, kms.NewKey{Index: 2, Purpose: hsm.PurposeSign, Published: true})
	for index, kinds := range map[uint32][2]hsm.Kind{1: {hsm.Mac, hsm.VerifyMac}, 2: {hsm.Sign, hsm.Verify}} {
		key := string('0' + rune(index))
		made := does(t, service, app, kms.Call{Kind: kinds[0], Key: key, Input: []byte("m")})[0]
		check := func(what string, making, verifying error) {
			t.Helper()
			if err := does(t, service, app, kms.Call{Kind: kinds[0], Key: key})[0].Err; !errors.Is(err, making) {
				t.Errorf("key %s, %s: making: %v, want %v", key, what, err, making)
			}
			verify := kms.Call{Kind: kinds[1], Key: key, Input: []byte("m"), Signature: made.Output, Version: 1}
			if err := does(t, service, app, verify)[0].Err; !errors.Is(err, verifying) {
				t.Errorf("key %s, %s: verifying: %v, want %v", key, what, err, verifying)
			}
		}
		check("active", nil, nil)
		order := func(_ *kms.Key, err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		order(service.SuspendKey(t.Context(), "test", index))
		check("suspended", fault.KeyDisabled, fault.KeyDisabled)
		order(service.ResumeKey(t.Context(), "test", index))
		order(service.DeactivateKey(t.Context(), "test", index, 0))
		check("deactivated", fault.KeyDisabled, nil)
		order(service.CompromiseKey(t.Context(), "test", index, 1))
		check("compromised", fault.KeyDisabled, fault.Forbidden)
		if err := does(t, service, trusted, kms.Call{Kind: kinds[1], Key: key, Input: []byte("m"), Signature: made.Output})[0].Err; err != nil {
			t.Errorf("key %s, compromised, with the grant for that: %v", key, err)
		}
		order(service.RotateKey(t.Context(), "test", index))
		check("rotated", nil, fault.Forbidden)
	}
	if set, err := service.Published(); err != nil || len(set) != 1 || set[0].Version != 2 {
		t.Errorf("published: %+v, %v", set, err)
	}
	// Required context: of codes and data keys, as of what is sealed.
	rule, err := policy.ParseContextRule("field")
	if err != nil {
		t.Fatal(err)
	}
	s.createFor(service, kms.NewKey{Index: 3, Purpose: hsm.PurposeMAC, Settings: kms.Settings{Context: rule}})
	s.createFor(service, kms.NewKey{Index: 4, Settings: kms.Settings{Context: rule}})
	for _, c := range []kms.Call{{Kind: hsm.Mac, Key: "3"}, {Kind: hsm.Mac, Key: "3", Index: true}, {Kind: hsm.DataKey, Key: "4", Size: 16}} {
		if err := does(t, service, app, c)[0].Err; !errors.Is(err, fault.ContextRequired) {
			t.Errorf("operation %d without context: %v", c.Kind, err)
		}
		c.Context = envelope.Context{"field": "phone"}
		if err := does(t, service, app, c)[0].Err; err != nil {
			t.Errorf("operation %d: %v", c.Kind, err)
		}
	}
}
