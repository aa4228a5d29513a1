package alg

import (
	"errors"
	"slices"
	"testing"

	"github.com/trikey/trikey/internal/fault"
)

func TestSelfTest(t *testing.T) {
	if err := SelfTest(); err != nil {
		t.Fatal(err)
	}
	for i, a := range table {
		if a.Class != 0 && !slices.Contains(knownAnswers.algorithms(), ID(i)) {
			t.Errorf("%s has no known answer", a.Name)
		}
	}
}

func (a answers) algorithms() (ids []ID) {
	for _, k := range a.seal {
		ids = append(ids, k.suite)
	}
	for _, k := range a.mac {
		ids = append(ids, k.id)
	}
	for _, k := range a.sign {
		ids = append(ids, k.id)
	}
	return ids
}

func BenchmarkSelfTest(b *testing.B) {
	for b.Loop() {
		if err := SelfTest(); err != nil {
			b.Fatal(err)
		}
	}
}

// Each answer is needed: one digit changed in any of them fails the self-test.
func TestSelfTestFails(t *testing.T) {
	spoil := func(hex string) string {
		if hex[len(hex)-1] == '0' {
			return hex[:len(hex)-1] + "1"
		}
		return hex[:len(hex)-1] + "0"
	}
	check := func(source string, a answers) {
		t.Helper()
		if err := a.run(); !errors.Is(err, fault.SelfTestFailed) {
			t.Errorf("%s, spoilt: %v", source, err)
		}
	}
	for i, k := range knownAnswers.seal {
		a := answers{seal: slices.Clone(knownAnswers.seal)}
		a.seal[i].ciphertext = spoil(k.ciphertext)
		check(k.source, a)
	}
	for i, k := range knownAnswers.hkdf {
		a := answers{hkdf: slices.Clone(knownAnswers.hkdf)}
		a.hkdf[i].okm = spoil(k.okm)
		check(k.source, a)
	}
	for i, k := range knownAnswers.cmac {
		a := answers{cmac: slices.Clone(knownAnswers.cmac)}
		a.cmac[i].mac = spoil(k.mac)
		check(k.source, a)
	}
	for i, k := range knownAnswers.mac {
		a := answers{mac: slices.Clone(knownAnswers.mac)}
		a.mac[i].mac = spoil(k.mac)
		check(k.source, a)
	}
	for i, k := range knownAnswers.sign {
		for _, part := range []func(*signAnswer) *string{
			func(k *signAnswer) *string { return &k.public }, func(k *signAnswer) *string { return &k.signature },
		} {
			a := answers{sign: slices.Clone(knownAnswers.sign)}
			*part(&a.sign[i]) = spoil(*part(&a.sign[i]))
			check(k.source, a)
		}
	}
	for i, k := range knownAnswers.kwp {
		a := answers{kwp: slices.Clone(knownAnswers.kwp)}
		a.kwp[i].wrapped = spoil(k.wrapped)
		check(k.source, a)
	}
}
