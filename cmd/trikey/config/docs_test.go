package config_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/trikey/trikey/cmd/trikey/config"
)

// TestOperationsTable: docs/operations.md has every key of the configuration, and no other.
func TestOperationsTable(t *testing.T) {
	raw, err := os.ReadFile("../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(raw), "| key | default | |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var told []config.Key
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "| `") {
			continue // the head's rule, and what each entry of a list has
		}
		first, _, _ := strings.Cut(line[2:], "|")
		section := ""
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(first, -1) {
			name := m[1]
			if strings.HasPrefix(name, ".") {
				name = section + name
			}
			told = append(told, config.Key(name))
			if at := strings.LastIndexByte(name, '.'); at > 0 {
				section = name[:at]
			}
		}
	}
	keys := config.Keys()
	if !found || len(told) < 40 {
		t.Fatalf("the table has %d keys", len(told))
	}
	for _, k := range keys {
		if !slices.Contains(told, k) {
			t.Errorf("%s is not told of", k)
		}
	}
	for _, k := range told {
		if !slices.Contains(keys, k) {
			t.Errorf("%s is told of and does not exist", k)
		}
	}
}
