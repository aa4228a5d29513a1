package command

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

func TestProgressLine(t *testing.T) {
	for _, test := range []struct {
		total, done int64
		want        string
	}{
		{0, 3 << 20, "3.0 MiB, 1.5 MiB/s"},
		{4 << 20, 0, "[                              ]   0%  0.0 MiB, 0.0 MiB/s"},
		{4 << 20, 2 << 20, "[===============               ]  50%  2.0 MiB, 1.0 MiB/s"},
		{4 << 20, 5 << 20, "[==============================] 100%  5.0 MiB, 2.5 MiB/s"},
	} {
		p := progress{total: test.total, done: test.done}
		if got := p.line(2 * time.Second); got != test.want {
			t.Errorf("%d of %d: %q, want %q", test.done, test.total, got, test.want)
		}
	}
}

func TestProgressWithoutTerminal(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var b bytes.Buffer
	for _, p := range []*progress{newProgress(&b, 10), newProgress(f, 10)} {
		p.since = time.Time{} // long ago
		p.add(10)
		p.clear()
	}
	if info, err := f.Stat(); err != nil || info.Size() > 0 || b.Len() > 0 {
		t.Errorf("%q, %v, %v", &b, info, err)
	}
	// On a terminal it is drawn, and taken away again.
	p := progress{w: &b, total: 10}
	p.add(5)
	p.clear()
	if got := b.String(); !strings.Contains(got, " 50%") || !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("%q", got)
	}
}
