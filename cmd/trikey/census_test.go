package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCensusBlocksDestroy counts ciphertexts in files, tells the service, and sees that
// it refuses to destroy what is in use until a newer count finds nothing, or somebody says
// why it shall be destroyed all the same; the audit has who and why.
func TestCensusBlocksDestroy(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	dir := t.TempDir()
	file, saved := filepath.Join(dir, "messages.jsonl"), filepath.Join(t.TempDir(), "census.json")
	write := func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	first := s.encrypt("7", []byte("one"), nil)
	s.ok("key", "rotate", "7")
	second := s.encrypt("7", []byte("two"), nil)
	write(`{"c":"`+first+`"}`, `{"c":"`+second+`"}`)
	s.ok("key", "census", "--in", dir, "--save", saved)
	s.keyJSON("schedule-destroy", "7", "--version", "1") // the service was not told
	s.ok("key", "cancel-destroy", "7")
	s.ok("key", "census", "--load", saved, "--record", "messages")
	destroy := []string{"key", "schedule-destroy", "7", "--version", "1"}
	s.refused(4, `version 1 by 1 ciphertexts in "messages"`, destroy...)
	s.refused(4, "key 7 is still in use", "key", "schedule-destroy", "7")
	s.refused(2, "--in or --load", "key", "census", "--record", "messages")

	// Version 1's ciphertext is re-encrypted, and the files are counted anew.
	a := s.post("/v1/reencrypt", object{"ciphertext": first})
	write(`{"c":"`+a.text("ciphertext")+`"}`, `{"c":"`+second+`"}`)
	s.ok("key", "census", "--in", dir, "--record", "messages")
	s.refused(1, "count anew", "key", "census", "--load", saved, "--record", "messages")
	if k := s.keyJSON(destroy[1:]...); k.Versions[0].DestroyAt == "" || k.Versions[1].State != "active" {
		t.Errorf("%+v", k)
	}
	s.refused(4, "version 2 by 2 ciphertexts", "key", "schedule-destroy", "7", "--version", "2")
	if k := s.keyJSON("schedule-destroy", "7", "--version", "2", "--even-if-used", "ticket 77: the data is to go"); k.Versions[1].DestroyAt == "" {
		t.Errorf("%+v", k)
	}
	var censuses []struct{ Name, Made string }
	s.ok("key", "censuses", "-o", "json").json(t, &censuses)
	if len(censuses) != 1 || censuses[0].Name != "messages" {
		t.Errorf("%+v", censuses)
	}
	if made, err := time.Parse(time.RFC3339, censuses[0].Made); err != nil || made.After(time.Now()) {
		t.Error(err)
	}
	s.ok("key", "censuses", "--forget", "messages")
	s.refused(5, "no census", "key", "censuses", "--forget", "messages")
	tail := s.ok("audit", "tail", "-n", "30", "-o", "json").out
	for _, want := range []string{"ticket 77: the data is to go", "key_in_use", "/admin/v1/censuses"} {
		if !strings.Contains(tail, want) {
			t.Errorf("the audit does not have %q:\n%s", want, tail)
		}
	}
}
