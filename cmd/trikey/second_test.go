package main_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/hsm/p11/softhsm"
	"github.com/trikey/trikey/hsm/p11/tpm"
	"github.com/trikey/trikey/internal/memscan"
)

// addTPM gives the site a card of a second PKCS#11 implementation, in a form.
func (s *site) addTPM(name string, form config.Module) p11.ModuleConfig {
	s.t.Helper()
	d, err := tpm.Start(s.path("tpm"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		s.kill() // it has the TPM's socket open
		if err := d.Stop(); err != nil {
			s.t.Error(err)
		}
	})
	pin, err := softhsm.NewPIN(8)
	if err != nil {
		s.t.Fatal(err)
	}
	defer pin.Wipe()
	id, err := d.NewToken(name, pin)
	if err != nil {
		s.t.Fatal(err)
	}
	err = pin.Use(func(p []byte) error { return os.WriteFile(s.path("pins", name), p, 0o600) })
	if err := errors.Join(err, os.WriteFile(s.path("pins", name+".card"), []byte(id.Serial), 0o600)); err != nil {
		s.t.Fatal(err)
	}
	cfg, err := config.Load(s.path("trikey.yaml"), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	form.Module, form.Env = d.Module.Path, d.Module.Env
	cfg.Machine.Cards = append(cfg.Machine.Cards, form)
	if err := cfg.Save(s.path("trikey.yaml")); err != nil {
		s.t.Fatal(err)
	}
	module := d.Module
	module.Form, module.OAEP, module.Shares = p11.Form(form.Form), form.OAEP, cfg.CardShares()
	return module
}

// newSecondSite returns a blank site with two cards on SoftHSM, a and b, and a third,
// tpm, on the second implementation.
func newSecondSite(t *testing.T, form config.Module) (*site, p11.ModuleConfig) {
	t.Helper()
	s := newSite(t)
	if err := os.Remove(s.path("data", "machine.json")); err != nil {
		t.Fatal(err)
	}
	s.newCard("a")
	s.newCard("b")
	return s, s.addTPM("tpm", form)
}

// TestSecondImplementation deals a root key to cards of two makers, two on SoftHSM and
// one on a TPM, and opens the machine with the three in one ceremony.
func TestSecondImplementation(t *testing.T) {
	t.Parallel()
	for _, form := range []config.Module{{Form: "data"}, {Form: "rsa", OAEP: "sha1"}, {Form: "rsa"}} {
		t.Run(strings.TrimSpace(form.Form+" "+form.OAEP), func(t *testing.T) {
			t.Parallel()
			s, _ := newSecondSite(t, form)
			s.start()
			cards := []string{"a", "tpm", "b"}
			s.ok(append([]string{"machine", "init", "--shares", "3"}, s.pins(cards...)...)...)
			if r := s.unseal(cards...); r.code != 0 || s.state() != "open 3/3" {
				t.Fatalf("unseal: %+v, %s", r, s.state())
			}
			s.ok("key", "create", "--index", "7", "--name", "chat")
			s.kill()
			s.start()
			if r := s.unseal("tpm"); r.code != 3 || s.state() != "collecting 1/3" {
				t.Errorf("the TPM alone: %+v, %s", r, s.state())
			}
			if r := s.unseal("b", "a"); r.code != 0 || s.state() != "open 3/3" {
				t.Errorf("with the others: %+v, %s", r, s.state())
			}
			if out := s.ok("key", "list").out; !strings.Contains(out, "chat") {
				t.Errorf("keys: %s", out)
			}
			s.ok("machine", "seal")
			s.wrongPIN("tpm")
			s.sealedShares(form.Form == "rsa")
		})
	}
}

// wrongPIN shows what a wrong PIN for a card comes to.
func (s *site) wrongPIN(card string) {
	s.t.Helper()
	serial, err := os.ReadFile(s.path("pins", card+".card"))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(s.path("pins", "wrong"), []byte("00000000"), 0o600), os.WriteFile(s.path("pins", "wrong.card"), serial, 0o600)); err != nil {
		s.t.Fatal(err)
	}
	if r := s.unseal("wrong"); r.code != 4 || !strings.Contains(r.err, "tried once") || s.state() != "sealed 0/3" {
		s.t.Errorf("a wrong PIN: %+v, %s", r, s.state())
	}
}

// sealedShares shows where the TPM's share is: in a file that is good only as a whole,
// or on the card.
func (s *site) sealedShares(file bool) {
	s.t.Helper()
	found, err := filepath.Glob(s.path("data", "card-shares", "*"))
	if err != nil || (len(found) == 1) != file || len(found) > 1 {
		s.t.Fatalf("sealed shares: %v, %v", found, err)
	}
	if !file {
		return
	}
	good, err := os.ReadFile(found[0])
	if err != nil {
		s.t.Fatal(err)
	}
	bad := append([]byte(nil), good...)
	bad[len(bad)/2] ^= 1
	for name, change := range map[string]func() error{
		"a byte flipped": func() error { return os.WriteFile(found[0], bad, 0o600) },
		"removed":        func() error { return os.Remove(found[0]) },
	} {
		if err := change(); err != nil {
			s.t.Fatal(err)
		}
		if r := s.unseal("tpm"); r.code != 6 || !strings.Contains(r.err, "damaged") || s.state() != "sealed 0/3" {
			s.t.Errorf("%s: %+v, %s", name, r, s.state())
		}
	}
	if err := os.WriteFile(found[0], good, 0o600); err != nil {
		s.t.Fatal(err)
	}
	if r := s.unseal("a", "b", "tpm"); r.code != 0 || s.state() != "open 3/3" {
		s.t.Errorf("restored: %+v, %s", r, s.state())
	}
}

// TestSecondMemory looks for what a card of the second implementation gave, in either
// form, in the memory of the running service, as TestMemory does.
func TestSecondMemory(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"data", "rsa"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			s, module := newSecondSite(t, config.Module{Form: form})
			cards := []string{"a", "tpm", "b"}
			s.start()
			s.ok(append([]string{"machine", "init", "--shares", "3"}, s.pins(cards...)...)...)
			s.kill()
			card, err := p11.NewReader(p11.ReaderConfig{Modules: []p11.ModuleConfig{module}}).Login(t.Context(), hsm.CardID{}, s.pin("tpm"))
			if err != nil {
				t.Fatal(err)
			}
			objects, err := card.Objects(t.Context())
			if err = errors.Join(err, card.Close()); err != nil || len(objects) != 1 {
				t.Fatalf("%d objects, %v", len(objects), err)
			}
			share, err := hsm.ParseShare(objects[0])
			if err != nil {
				t.Fatal(err)
			}
			canary, needles := withCanary([]memscan.Needle{needle(t, "share", share.Value), needle(t, "PIN", s.pin("tpm"))})
			s.start(canary)
			for range 10 { // what is left behind adds up
				s.ok("machine", "seal")
				if r := s.unseal(cards...); r.code != 0 {
					t.Fatal(r)
				}
			}
			s.clean(needles)
			s.ok("machine", "seal")
			s.clean(needles)
		})
	}
}
