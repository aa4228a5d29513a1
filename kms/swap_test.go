package kms_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/hsm/soft"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/policy"
)

func grantsOf(t testing.TB, rules ...string) policy.Grants {
	t.Helper()
	all := policy.Grants{}
	for _, rule := range rules {
		g, err := policy.ParseGrants(rule)
		if err != nil {
			t.Fatal(err)
		}
		all = all.Add(g)
	}
	return all
}

// does carries out calls as an app with grants, all of which must be answered.
func does(t testing.TB, service *kms.Service, app *auth.Caller, calls ...kms.Call) []kms.Call {
	t.Helper()
	if err := service.Do(t.Context(), app, calls); err != nil {
		t.Fatal(err)
	}
	return calls
}

// place is where a ciphertext belongs: an app's key in a version, a kind of chat and a
// conversation.
type place struct {
	app          int
	version      uint32
	chat         string
	conversation string
}

func (p place) key() string { return fmt.Sprint(10 + p.app) }

func (p place) context() envelope.Context {
	return envelope.Context{"chat_type": p.chat, "conversation": p.conversation}
}

// places are all of them: 3 apps, each with its own key, × 2 versions × 3 kinds of chats
// × 3 conversations.
func places() (all []place) {
	for app := range 3 {
		for version := range uint32(2) {
			for _, chat := range []string{"single", "group", "broadcast"} {
				for _, conversation := range []string{"c-1", "c-2", "c-11"} {
					all = append(all, place{app, version + 1, chat, conversation})
				}
			}
		}
	}
	return all
}

// TestSwapMatrix exchanges every ciphertext with every other place: none opens anywhere but
// where it was sealed, and each refusal has its code.
func TestSwapMatrix(t *testing.T) {
	s := newSite(t)
	service := s.service()
	apps := make([]*auth.Caller, 3)
	for i := range apps {
		key := place{app: i}.key()
		s.create(service, uint32(10+i), "app-"+key)
		apps[i] = &auth.Caller{App: &auth.App{Name: key, Grants: grantsOf(t, "keys="+key+";ops=encrypt,decrypt,reencrypt")}}
	}
	sealed := map[place][]byte{}
	for _, version := range []uint32{1, 2} {
		for _, p := range places() {
			if p.version == version {
				c := does(t, service, apps[p.app], kms.Call{Kind: hsm.Encrypt, Key: p.key(), Context: p.context(), Input: fmt.Append(nil, p)})[0]
				if c.Err != nil || c.KeyVersion != version {
					t.Fatal(c.KeyVersion, c.Err)
				}
				sealed[p] = c.Output
			}
		}
		if version == 1 {
			for i := range apps {
				if _, err := service.RotateKey(t.Context(), "test", uint32(10+i)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	tried := 0
	for from, ciphertext := range sealed {
		for to := range sealed {
			// The header is made to name the key version of the other place: as it stands, the
			// ciphertext would only say that it is not from there.
			moved := append([]byte(nil), ciphertext...)
			copy(moved[2:10], sealed[to][2:10])
			calls := does(t, service, apps[to.app],
				kms.Call{Kind: hsm.Decrypt, Key: to.key(), Context: to.context(), Input: moved},
				kms.Call{Kind: hsm.Decrypt, Context: to.context(), Input: ciphertext},
				kms.Call{Kind: hsm.Reencrypt, Context: to.context(), ToContext: to.context(), Input: ciphertext})
			tried++
			if from == to {
				for _, c := range calls[:2] {
					if c.Err != nil || string(c.Output) != fmt.Sprint(from) {
						t.Fatalf("%+v at its own place: %q, %v", from, c.Output, c.Err)
					}
				}
				continue
			}
			if !errors.Is(calls[0].Err, fault.DecryptFailed) || len(calls[0].Output) != 0 {
				t.Errorf("%+v opens as %+v: %v", from, to, calls[0].Err)
			}
			// As it is: another app's key is forbidden, whatever else is wrong. A version is the
			// ciphertext's own, so that it opens there where nothing but the version differs.
			alone := from
			alone.version = to.version
			want := error(fault.DecryptFailed)
			switch {
			case from.app != to.app:
				want = fault.Forbidden
			case alone == to:
				want = nil
			}
			for _, c := range calls[1:] {
				if !errors.Is(c.Err, want) {
					t.Errorf("%+v given by %+v: %v, want %v", from, to, c.Err, want)
				}
			}
		}
	}
	if tried != 54*54 {
		t.Errorf("%d pairs were tried", tried)
	}
}

// TestSwapRegions: what belongs to one region does not open in another, though the root, the
// index, the version and the context were the same.
func TestSwapRegions(t *testing.T) {
	chip, root := hsmtest.NewChip(t), hsmtest.NewRoot(t)
	regions := []string{"cn-north", "cn-south", "eu"}
	type sealedKey struct {
		wrapped    hsm.WrappedKey
		ciphertext []byte
	}
	engines, made := map[string]hsm.Engine{}, map[string]sealedKey{}
	context := envelope.Context{"conversation": "c-1"}.AppendCanonical(nil)
	for _, region := range regions {
		e := soft.New(soft.Config{Chip: chip, Region: region})
		t.Cleanup(func() { _ = e.Close() })
		root.Region = region
		if err := e.Open(t.Context(), root); err != nil {
			t.Fatal(err)
		}
		k, err := e.GenerateKey(t.Context(), hsm.Binding{Index: 7, Version: 1, Algorithm: alg.AES256GCM, Purpose: hsm.PurposeSeal})
		if err != nil {
			t.Fatal(err)
		}
		ops := []hsm.Op{{Kind: hsm.Encrypt, Key: k.Wrapped, Context: context, Input: []byte(region)}}
		if err := errors.Join(e.Do(t.Context(), ops), ops[0].Err); err != nil {
			t.Fatal(err)
		}
		engines[region], made[region] = e, sealedKey{k.Wrapped, ops[0].Output}
	}
	for here, e := range engines {
		for there, m := range made {
			ops := []hsm.Op{
				{Kind: hsm.Decrypt, Key: m.wrapped, Context: context, Input: m.ciphertext},
				{Kind: hsm.Decrypt, Key: made[here].wrapped, Context: context, Input: m.ciphertext},
			}
			if err := e.Do(t.Context(), ops); err != nil {
				t.Fatal(err)
			}
			if here == there {
				if ops[0].Err != nil || string(ops[0].Output) != here {
					t.Errorf("%s at home: %v", here, ops[0].Err)
				}
				continue
			}
			if !errors.Is(ops[0].Err, fault.WrongRegion) || !errors.Is(ops[1].Err, fault.DecryptFailed) {
				t.Errorf("%s in %s: with its key %v, with the local one %v", there, here, ops[0].Err, ops[1].Err)
			}
		}
	}
}

// TestMillionSealings: of a million sealings of one text none repeats, not even in part: the
// nonces alone are all different, and so are the tags.
func TestMillionSealings(t *testing.T) {
	s := newSite(t)
	service := s.service()
	s.create(service, 7, "chat")
	app := &auth.Caller{App: &auth.App{Grants: grantsOf(t, "keys=7;ops=encrypt")}}
	const batch, total = 1000, 1_000_000
	nonces, tags := make(map[[12]byte]struct{}, total), make(map[[16]byte]struct{}, total)
	calls, buffer := make([]kms.Call, batch), make([]byte, batch*64)
	for range total / batch {
		for i := range calls {
			calls[i] = kms.Call{Kind: hsm.Encrypt, Key: "7", Context: envelope.Context{"conversation": "c-1"}, Input: []byte("ok"), Output: buffer[64*i : 64*i : 64*i+64]}
		}
		if err := service.Do(t.Context(), app, calls); err != nil {
			t.Fatal(err)
		}
		for i := range calls {
			out := calls[i].Output
			if calls[i].Err != nil || len(out) != 56 {
				t.Fatal(calls[i].Err)
			}
			nonces[[12]byte(out[26:38])] = struct{}{}
			tags[[16]byte(out[40:])] = struct{}{}
		}
	}
	if len(nonces) != total || len(tags) != total {
		t.Errorf("of %d sealings, %d nonces and %d tags are different", total, len(nonces), len(tags))
	}
}

// TestRoundTripProperty: whatever is sealed comes back, and not with another context: every
// suite, sizes from nothing to 8 MiB, contexts of any Unicode.
func TestRoundTripProperty(t *testing.T) {
	s := newSite(t)
	service := s.service()
	s.create(service, 1, "any")
	if _, err := service.CreateKey(t.Context(), "test", kms.NewKey{Index: 2, Purpose: hsm.PurposeDeterministic}); err != nil {
		t.Fatal(err)
	}
	app := &auth.Caller{App: &auth.App{Grants: grantsOf(t, "keys=1-2;ops=encrypt,decrypt")}}
	sizes := []int{0, 1, 2, 15, 16, 17, 31, 32, 33, 255, 4096, 65535, 65536, 65537, 1 << 20, 8<<20 - 1, 8 << 20}
	for _, name := range alg.Names(alg.Sealing, alg.Deterministic) {
		key := "1"
		if name == alg.AES256SIV.String() {
			key = "2"
		}
		for i := range 60 {
			size := i
			if i < len(sizes) {
				size = sizes[i]
			}
			plaintext, context := make([]byte, size), unicodeContext()
			_, _ = rand.Read(plaintext)
			c := does(t, service, app, kms.Call{Kind: hsm.Encrypt, Key: key, Algorithm: name, Context: context, Input: plaintext})[0]
			if c.Err != nil {
				t.Fatalf("%s, %d bytes, context %+q: %v", name, size, context, c.Err)
			}
			other := unicodeContext()
			other["another"] = "field"
			opened := does(t, service, app,
				kms.Call{Kind: hsm.Decrypt, Key: key, Context: context, Input: c.Output},
				kms.Call{Kind: hsm.Decrypt, Key: key, Context: other, Input: c.Output})
			if opened[0].Err != nil || string(opened[0].Output) != string(plaintext) {
				t.Errorf("%s, %d bytes, context %+q: %v", name, size, context, opened[0].Err)
			}
			if !errors.Is(opened[1].Err, fault.DecryptFailed) || len(opened[1].Output) != 0 {
				t.Errorf("%s, %d bytes, context %+q opens with %+q: %v", name, size, context, other, opened[1].Err)
			}
		}
	}
}

// unicodeContext draws up to 8 fields of any Unicode scalar values: unassigned ones, controls,
// combining marks and those beyond the basic plane too.
func unicodeContext() envelope.Context {
	var raw [256]byte
	_, _ = rand.Read(raw[:])
	next := func() (b byte) { b = raw[0]; copy(raw[:], raw[1:]); return b }
	text := func(n byte) string {
		var out []rune
		for range n {
			r := (rune(next())<<16 | rune(next())<<8 | rune(next())) % 0x110000
			if r >= 0xd800 && r < 0xe000 { // surrogates are no scalar values
				r -= 0xd800
			}
			out = append(out, r)
		}
		return string(out)
	}
	c := envelope.Context{}
	for range next() % 8 {
		c[text(1+next()%4)] = text(next() % 5)
	}
	return c
}
