package audit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"time"
)

// Tail calls f with the last events of a log, n of them, as lines of JSON; and, where
// follow is set, with each that is added until ctx ends. It reads the files, and proves
// nothing.
func Tail(ctx context.Context, dir string, n int, follow bool, f func(line []byte) error) error {
	list, err := segments(dir)
	if err != nil || len(list) == 0 {
		return missing(dir, errors.Join(err, os.ErrNotExist))
	}
	var last [][]byte
	for i := len(list) - 1; i >= 0 && len(last) < n; i-- {
		lines, err := lastLines(list[i].path, n-len(last))
		if err != nil {
			return err
		}
		last = append(lines, last...)
	}
	newest := list[len(list)-1]
	info, err := os.Stat(newest.path)
	if err != nil {
		return err
	}
	offset := info.Size()
	if len(last) > 0 {
		if raw, err := os.ReadFile(newest.path); err == nil { // up to the last whole line, which may be later by now
			offset = int64(bytes.LastIndex(raw, last[len(last)-1]) + len(last[len(last)-1]) + 1)
		}
	}
	for _, line := range last {
		if err := f(line); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	return followFrom(ctx, dir, newest, offset, f)
}

func lastLines(path string, n int) ([][]byte, error) {
	r, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	ring := make([][]byte, 0, n)
	_, _, err = eachLine(r, func(line []byte) error {
		if len(ring) == n {
			ring = append(ring[:0], ring[1:]...)
		}
		ring = append(ring, bytes.Clone(line))
		return nil
	})
	return ring, err
}

// followFrom reads what is added, from a place in a file on.
func followFrom(ctx context.Context, dir string, at segment, offset int64, f func([]byte) error) error {
	ticks := time.NewTicker(200 * time.Millisecond)
	defer ticks.Stop()
	for {
		r, err := os.Open(at.path)
		if err != nil {
			return err
		}
		whole, _, err := eachLine(io.NewSectionReader(r, offset, 1<<62), f)
		_ = r.Close() // only read
		if err != nil {
			return err
		}
		offset += whole
		list, err := segments(dir)
		if err != nil {
			return err
		}
		moved := false
		for _, s := range list {
			if s.first > at.first && whole == 0 {
				at, offset, moved = s, 0, true
				break
			}
		}
		if moved {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
	}
}
