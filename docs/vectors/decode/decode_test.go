package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every vector is recomputed, and there are no fewer than there were.
func TestEveryVector(t *testing.T) {
	least := map[string]int{"ciphertext.json": 30, "context.json": 18, "kcv.json": 5, "mac.json": 10, "sign.json": 9, "import.json": 2, "stream.json": 20, "resident.json": 5}
	files, err := filepath.Glob("../*.json")
	if err != nil || len(files) != len(least) {
		t.Errorf("%d files, %v; the decoder reads %d", len(files), err, len(least))
	}
	for file, want := range least {
		raw, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := check(file, raw); err != nil || n < want {
			t.Errorf("%s: %d vectors, want %d: %v", file, n, want, err)
		}
	}
}

// A vector with a digit changed, anywhere, is noticed: nothing in one is only copied.
func TestChangedVectors(t *testing.T) {
	hex := regexp.MustCompile(`"[a-z_]+": "[0-9a-f]+"`)
	for file := range checks {
		raw, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			t.Fatal(err)
		}
		text := string(raw)
		at := hex.FindAllStringIndex(text, -1)
		changed := 0
		for i := 0; i < len(at); i += 7 {
			last := at[i][1] - 2
			digit := "0"
			if text[last] == '0' {
				digit = "1"
			}
			if _, err := check(file, []byte(text[:last]+digit+text[last+1:])); err == nil {
				t.Errorf("%s: %s with another last digit passes", file, strings.SplitN(text[at[i][0]:at[i][1]], ":", 2)[0])
			}
			changed++
		}
		if file != "context.json" && changed == 0 {
			t.Errorf("%s: nothing was changed", file)
		}
	}
	if _, err := check("kcv.json", []byte("[]")); err == nil {
		t.Error("a file without vectors passes")
	}
}
