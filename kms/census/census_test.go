package census_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/census"
)

func ciphertext(index, version uint32, n int) []byte {
	h := envelope.Header{Suite: 1, Index: index, Version: version}
	return append(h.Append(nil), make([]byte, n+envelope.TagSize)...)
}

func text(index, version uint32, n int) string {
	return string(envelope.AppendText(nil, ciphertext(index, version, n)))
}

func TestCensus(t *testing.T) {
	dir := t.TempDir()
	stream := envelope.StreamHeader{Suite: 4, Index: 9, Version: 2}
	for name, content := range map[string]string{
		"a.jsonl": `{"c":"` + text(7, 1, 0) + `","d":"` + text(7, 2, 3000) + `"}` + "\n" + `{"escaped":"line\n` + text(7, 1, 5) + `\n"}`,
		"b.sql":   "INSERT INTO m VALUES (1,'" + text(8, 1, 10) + "'),(2,'tktk1.short', 'ttk1.'),(3,tk1.AQEAAA" + ") tk1.tk1." + text(8, 1, 0) + text(8, 1, 0),
		"c.bin":   string(stream.Append(nil)) + strings.Repeat("x", 100),
		"d.bin":   string(ciphertext(8, 1, 20)),
		"e.txt":   "ends with one: " + text(7, 1, 1),
		"f.bin":   "\x02\xff\x00\x00\x00\x07" + strings.Repeat("\x00", 100),
		"empty":   "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(dir, dir+".link"); err != nil {
		t.Fatal(err)
	}
	var told int64
	c := &census.Census{Made: time.Unix(1, 0).UTC()}
	if err := c.Count(t.Context(), dir+".link", func(n int64) { told += n }); err != nil {
		t.Fatal(err)
	}
	want := []census.Use{{7, 1, 3, 0}, {7, 2, 1, 0}, {8, 1, 4, 0}, {9, 2, 0, 1}}
	if !reflect.DeepEqual(c.Keys, want) || c.Files != 7 || c.Unreadable != 5 || told != c.Bytes {
		t.Errorf("%+v, told of %d bytes", c, told)
	}
	for _, u := range []struct{ index, version, want int }{{7, 1, 3}, {9, 2, 1}, {7, 3, 0}, {1, 1, 0}, {10, 1, 0}} {
		if got := c.Uses(uint32(u.index), uint32(u.version)); got != u.want {
			t.Errorf("%+v: %d", u, got)
		}
	}
	path := filepath.Join(t.TempDir(), "census.json")
	if err := c.Save(path); err != nil {
		t.Fatal(err)
	}
	if got, err := census.Load(path); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := census.Load(path + "x"); !errors.Is(err, fault.NotFound) {
		t.Errorf("no file: %v", err)
	}
	if err := c.Count(t.Context(), filepath.Join(dir, "none"), nil); !errors.Is(err, fault.Usage) {
		t.Errorf("no directory: %v", err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "inner")); err != nil {
		t.Fatal(err)
	}
	if err := c.Count(t.Context(), dir, nil); !errors.Is(err, fault.Usage) {
		t.Errorf("a link to a directory: %v", err)
	}
}

// However the bytes arrive, and wherever a ciphertext is cut by the reader's buffer.
func TestCensusAcrossBuffers(t *testing.T) {
	for offset := range 200 {
		content := strings.Repeat("-", 64<<10-100+offset) + text(7, 1, 30) + "\n"
		var c census.Census
		if err := c.Read(iotest.HalfReader(bytes.NewReader([]byte(content)))); err != nil || c.Uses(7, 1) != 1 || c.Unreadable != 0 {
			t.Fatalf("offset %d: %+v, %v", offset, c, err)
		}
	}
	var c census.Census
	if err := c.Read(iotest.ErrReader(os.ErrPermission)); !errors.Is(err, os.ErrPermission) {
		t.Errorf("%v", err)
	}
}
