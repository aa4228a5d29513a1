// Package hsmtest is the contract of hsm.Machine, as a test suite that every machine
// passes, and what tests of other packages need to have a real machine.
package hsmtest

import (
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/hsm/p11/softhsm"
	"github.com/trikey/trikey/hsm/soft"
	"github.com/trikey/trikey/internal/secret"
)

// Region is the region of the machines made here.
const Region = "test"

// NewChip returns a provisioned SoftHSM chip.
func NewChip(t testing.TB) hsm.Token {
	t.Helper()
	module, err := softhsm.NewReader(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pin, err := softhsm.NewPIN(8)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := softhsm.NewToken(module, "chip", pin); err != nil {
		t.Fatal(err)
	}
	cfg := p11.ChipConfig{Module: module, Label: "chip", PIN: pin}
	if err := p11.ProvisionChip(cfg); err != nil {
		t.Fatal(err)
	}
	chip, err := p11.OpenChip(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = chip.Close() })
	return chip
}

// NewRoot returns a fresh root key, as a ceremony would have rebuilt it.
func NewRoot(t testing.TB) hsm.Root {
	t.Helper()
	key, err := secret.Random(hsm.RootSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Wipe)
	root := hsm.Root{Key: key, Manifest: hsm.Manifest{
		MachineID: hsm.NewID(), RootID: hsm.NewID(), SplitID: hsm.NewID(), Generation: 1, Threshold: 3, Shares: 3, Region: Region,
	}}
	err = key.Use(func(k []byte) (err error) { root.KCV, err = alg.KCV(k); return err })
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// Open returns an open host engine over a SoftHSM chip.
func Open(t testing.TB) hsm.Engine {
	t.Helper()
	e := soft.New(soft.Config{Chip: NewChip(t), Region: Region})
	if err := e.Open(t.Context(), NewRoot(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}
