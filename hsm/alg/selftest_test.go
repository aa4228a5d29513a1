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
	for _, a := range table {
		if !slices.ContainsFunc(knownAnswers.seal, func(k sealAnswer) bool { return k.suite == a.ID }) {
			t.Errorf("%s has no known answer", a.Name)
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
}
