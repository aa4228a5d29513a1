package durable_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/trikey/trikey/internal/durable"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, content := range []string{"first", "second", ""} {
		if err := durable.WriteBytes(dir, "file", []byte(content)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("wrote %q, read %q, %v", content, got, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// A failure leaves what was there, and nothing beside it.
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	for where, name := range map[string]string{dir: "taken", filepath.Join(dir, "missing"): "file"} {
		if err := durable.WriteBytes(where, name, []byte("x")); err == nil {
			t.Errorf("wrote %s/%s", where, name)
		}
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 2 {
		t.Errorf("left behind: %v, %v", list, err)
	}
}
