package main_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestNamedTests: every test that the documents name is one, and every line of the table of
// attacks names one.
func TestNamedTests(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	declared, named := regexp.MustCompile(`(?m)^func (Test\w+)\(\w+ \*testing\.T\)`), regexp.MustCompile(`\bTest[A-Z]\w+`)
	tests := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		raw, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(raw, -1) {
			tests[string(m[1])] = true
		}
		return err
	})
	if err != nil || len(tests) < 100 {
		t.Fatalf("%d tests: %v", len(tests), err)
	}
	for _, document := range []string{"attacks.md", "threat-model.md", "operations.md", "api.md", "format.md"} {
		raw, err := os.ReadFile(filepath.Join(root, "docs", document))
		if err != nil {
			t.Fatal(err)
		}
		for number, line := range strings.Split(string(raw), "\n") {
			found := named.FindAllString(line, -1)
			for _, name := range found {
				if !tests[name] {
					t.Errorf("docs/%s:%d: there is no %s", document, number+1, name)
				}
			}
			row := strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| attack |")
			if document == "attacks.md" && row && len(found) == 0 {
				t.Errorf("docs/%s:%d: no test shows this", document, number+1)
			}
		}
	}
}
