package main_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/memscan"
	"github.com/trikey/trikey/internal/secret"
)

// TestMemory looks for the root key, the shares and the PINs in the memory of the
// running service, from another process that knows them. It must find a canary that was
// planted there, or its silence would mean nothing.
func TestMemory(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var needles []memscan.Needle
	var shares []*hsm.Share
	for _, card := range []string{"1", "2", "3"} {
		envelope, err := secret.Move(s.object(card))
		if err != nil {
			t.Fatal(err)
		}
		share, err := hsm.ParseShare(envelope)
		if err != nil {
			t.Fatal(err)
		}
		shares = append(shares, share)
		needles = append(needles, needle(t, "share "+card, share.Value), needle(t, "PIN "+card, s.pin(card)))
	}
	root, err := hsm.Rebuild(shares)
	if err != nil {
		t.Fatal(err)
	}
	derived := hsm.Root{Manifest: shares[0].Manifest, Key: root}
	wrap, err := derived.WrapKey()
	if err != nil {
		t.Fatal(err)
	}
	record, err := derived.RecordKey()
	if err != nil {
		t.Fatal(err)
	}
	needles = append(needles, needle(t, "root", root), needle(t, "wrapping key", wrap), needle(t, "record key", record), needle(t, "chip PIN", s.pin("chip")))
	canary, needles := withCanary(needles)
	s.open(canary)
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)
	// What is left behind adds up: seal and open again, many times.
	for range 10 {
		s.ok("machine", "seal")
		if r := s.unseal("1", "2", "3"); r.code != 0 {
			t.Fatal(r)
		}
	}
	for range 3 {
		for range 200 {
			s.encrypt("7", []byte("load"), nil)
		}
		s.clean(needles)
	}
	s.encrypt("7", []byte("alive"), nil)
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
		switch {
		case h.Name == "canary":
		case strings.HasSuffix(h.Form, "half"):
			// A vector register that a preemption saved: rare, sixteen bytes, and
			// named in docs/threat-model.md.
			s.t.Logf("%s (%s) lies at %#x in %s", h.Name, h.Form, h.Address, h.Region)
		default:
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
