package api_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMetricsAndCodesAreTold: docs/api.md has every metric, and every code of the data plane
// and the admin API.
func TestMetricsAndCodesAreTold(t *testing.T) {
	raw, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	docs := string(raw)
	metrics := map[string]bool{}
	for _, root := range []string{".", "../kms", "../hsm"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			for _, m := range regexp.MustCompile(`(?:Name: |NewDesc\(|metric\()"(trikey_[a-z_]+)"`).FindAllStringSubmatch(string(source), -1) {
				metrics[m[1]] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(metrics) < 30 {
		t.Fatalf("only %d metrics were found", len(metrics))
	}
	for name := range metrics {
		rest, isAudit := strings.CutPrefix(name, "trikey_audit")
		if !strings.Contains(docs, "`"+name) && (!isAudit || !strings.Contains(docs, "`"+rest)) {
			t.Errorf("the metric %s is not told of", name)
		}
	}

	source, err := os.ReadFile("../internal/fault/code.go")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(source), "// Codes of the data plane.")
	list, _, _ = strings.Cut(list, "// Codes of the machine's console")
	codes := regexp.MustCompile(`Code = "([a-z_]+)"`).FindAllStringSubmatch(list, -1)
	if len(codes) < 25 {
		t.Fatalf("only %d codes were found", len(codes))
	}
	for _, m := range codes {
		if !strings.Contains(docs, "`"+m[1]+"`") {
			t.Errorf("the code %s is not told of", m[1])
		}
	}
}
