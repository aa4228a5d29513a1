package command

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// progress is a bar on a terminal, for work that takes longer than a moment. Where
// there is no terminal nothing is written.
type progress struct {
	w     io.Writer // nil where there is no terminal
	total int64     // bytes; 0 when not known
	done  int64
	since time.Time
	drawn time.Time
}

const (
	progressAfter = time.Second
	progressEvery = 100 * time.Millisecond
	progressWidth = 30
)

func newProgress(w io.Writer, total int64) *progress {
	p := &progress{total: total, since: time.Now()}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.w = w
	}
	return p
}

func (p *progress) add(n int64) {
	p.done += n
	if now := time.Now(); p.w != nil && now.Sub(p.since) >= progressAfter && now.Sub(p.drawn) >= progressEvery {
		p.drawn = now
		fmt.Fprintf(p.w, "\r\x1b[K%s", p.line(now.Sub(p.since)))
	}
}

// line is the bar after some time.
func (p *progress) line(took time.Duration) string {
	rate := fmt.Sprintf("%.1f MiB, %.1f MiB/s", float64(p.done)/(1<<20), float64(p.done)/(1<<20)/took.Seconds())
	if p.total <= 0 {
		return rate
	}
	share := min(1, float64(p.done)/float64(p.total))
	filled := int(share * progressWidth)
	return fmt.Sprintf("[%s%s] %3d%%  %s", strings.Repeat("=", filled), strings.Repeat(" ", progressWidth-filled), int(share*100), rate)
}

// clear takes the bar away.
func (p *progress) clear() {
	if p.w != nil && !p.drawn.IsZero() {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
