package main_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/internal/memscan"
	"github.com/trikey/trikey/internal/secret"
)

// TestMemory looks for the root key, the shares, the PINs and, once the machine is sealed,
// the business keys in the memory of the running service, from another process that knows
// them: after a start with cards, under load, sealed, and after a warm start; five times.
// It must find a canary that was planted there, or its silence would mean nothing.
func TestMemory(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)
	needles := s.secrets()
	for run := range 5 {
		s.kill()
		canary, all := withCanary(needles)
		warm := "TRIKEY_MACHINE_START=warm"
		s.open(canary, warm)
		business := s.businessKey(fmt.Sprint(run + 1))
		s.load(fmt.Sprint(run + 1))
		s.clean(all)
		// What is left behind adds up: seal and open again.
		for range 3 {
			s.ok("machine", "seal")
			s.unsealAny(s.allCards())
		}
		s.load(fmt.Sprint(run + 1))
		s.clean(all)
		s.ok("machine", "seal")
		s.clean(append(all, business))
		s.unsealAny(s.allCards())
		s.kill()
		s.start(canary, warm)
		s.load(fmt.Sprint(run + 1))
		s.clean(all)
		s.ok("machine", "seal")
		s.clean(append(all, business))
	}
}

// The control: in a build that protects nothing the same scan finds the root.
func TestMemoryControl(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	needles := s.secrets()
	s.startBinary(buildControl(t))
	s.unsealAny(s.allCards())
	report := s.scan(needles)
	for _, name := range []string{"root", "share 1", "share 2", "share 3"} {
		if !report.Found(name) {
			t.Errorf("%s was not found in %d bytes of a process that protects nothing", name, report.Scanned)
		}
	}
}

// buildControl builds the command without protection of secrets.
func buildControl(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trikey-unprotected")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-tags", "unprotected", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// secrets are what the site's service must not have in its memory.
func (s *site) secrets() (needles []memscan.Needle) {
	s.t.Helper()
	root := s.root(s.allCards()...)
	wrap, err := root.WrapKey()
	if err != nil {
		s.t.Fatal(err)
	}
	record, err := root.RecordKey()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, card := range s.allCards() {
		share, err := secret.Move(s.object(card))
		if err != nil {
			s.t.Fatal(err)
		}
		parsed, err := hsm.ParseShare(share)
		if err != nil {
			s.t.Fatal(err)
		}
		needles = append(needles, needle(s.t, "share "+card, parsed.Value), needle(s.t, "PIN "+card, s.pin(card)))
	}
	return append(needles, needle(s.t, "root", root.Key), needle(s.t, "wrapping key", wrap), needle(s.t, "record key", record),
		needle(s.t, "chip PIN", s.pin("chip")))
}

// businessKey has the service take in a key that the test knows.
func (s *site) businessKey(index string) memscan.Needle {
	s.t.Helper()
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	s.importKey(index, raw)
	return memscan.Needle{Name: "business key", Value: raw}
}

// importKey has a service take a key in, wrapped.
func (s *site) importKey(index string, raw []byte) {
	s.t.Helper()
	var begun struct {
		ID        string `json:"id"`
		PublicKey string `json:"public_key"`
	}
	s.ok("key", "import", "begin", "-o", "json").json(s.t, &begun)
	public, _ := pem.Decode([]byte(begun.PublicKey))
	if public == nil {
		s.t.Fatalf("%+v", begun)
	}
	file := filepath.Join(s.t.TempDir(), "blob")
	s.write(file, hsmtest.Blob(s.t, public.Bytes, raw))
	s.ok("key", "import", "finish", "--id", begun.ID, "--in", file, "--index", index, "--name", "k"+index)
}

// load has the service work with a key.
func (s *site) load(index string) {
	s.t.Helper()
	for range 100 {
		sealed := s.encrypt(index, []byte("load"), nil)
		if a := s.post("/v1/keys/"+index+"/decrypt", object{"ciphertext": sealed}); a.status != 200 {
			s.t.Fatalf("%d %s", a.status, a.raw)
		}
	}
}

// withCanary adds a needle that the service must have, and returns what plants it in its
// environment.
func withCanary(needles []memscan.Needle) (env string, all []memscan.Needle) {
	random := make([]byte, 32)
	_, _ = rand.Read(random)
	canary := hex.EncodeToString(random)
	return "TRIKEY_TEST_CANARY=" + canary, append(needles, memscan.Needle{Name: "canary", Value: []byte(canary)})
}

// clean scans the service for needles. The canary is one, and alone is found.
func (s *site) clean(needles []memscan.Needle) {
	s.t.Helper()
	report := s.scan(needles)
	if !report.Found("canary") {
		s.t.Fatalf("the canary was not found in %d bytes: the scan proves nothing", report.Scanned)
	}
	for _, h := range report.Hits {
		if h.Name != "canary" {
			s.t.Errorf("%s (%s) lies at %#x in %s", h.Name, h.Form, h.Address, h.Region)
		}
	}
}

func needle(t *testing.T, name string, s *secret.Bytes) memscan.Needle {
	t.Helper()
	n := memscan.Needle{Name: name}
	if err := s.Use(func(b []byte) error { n.Value = bytes.Clone(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// scan runs the scanner as a process of its own.
func (s *site) scan(needles []memscan.Needle) memscan.Report {
	s.t.Helper()
	in, err := json.Marshal(needles)
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.CommandContext(s.t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("TRIKEY_TEST_SCAN=%d", s.serve.Process.Pid))
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("the scan failed (it needs root, or CAP_SYS_PTRACE: the service keeps others out of its memory): %v", err)
	}
	var report memscan.Report
	if err := json.Unmarshal(out, &report); err != nil {
		s.t.Fatal(err)
	}
	return report
}
