package audit

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/trikey/trikey/internal/fault"
)

// writer is what the writing goroutine has.
type writer struct {
	segment *file
	hashes  *file
	head    tree
	broken  error       // what somebody else did to the files: stays
	usual   int         // calls of a round, lately
	timer   *time.Timer // of gather
	buf     []byte
	stored  []byte
	syncs   atomic.Int64
}

func (w *writer) close() (err error) {
	for _, f := range []*file{w.segment, w.hashes} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	w.segment, w.hashes = nil, nil
	return err
}

// maxRound bounds the calls that one fdatasync answers.
const maxRound = 1024

// look is how often the files are looked at, and a blocked log is tried again.
const look = time.Second

// write is the writing goroutine.
func (l *Log) write() {
	defer close(l.written)
	l.writer.timer = time.NewTimer(linger)
	l.writer.timer.Stop()
	ticks := time.NewTicker(look)
	defer ticks.Stop()
	for {
		select {
		case a := <-l.queue:
			l.commit(l.gather(a))
		case <-ticks.C:
			l.tick()
		case <-l.stop:
			for len(l.queue) > 0 {
				l.commit(l.gather(<-l.queue))
			}
			return
		}
	}
}

// linger is how long a round waits for more calls while there are many: a caller that
// is alone never waits for another. One fdatasync costs as much processor time as two
// encryptions, so that under load it pays to share it.
const linger = time.Millisecond

// gather takes whatever waits. Where the rounds before had several calls it waits for as
// many, but not for long.
func (l *Log) gather(a *appending) []*appending {
	w := &l.writer
	round := []*appending{a}
	var late <-chan time.Time
	for len(round) < maxRound {
		select {
		case a := <-l.queue:
			round = append(round, a)
			continue
		default:
		}
		if len(round) >= w.usual {
			break
		}
		if late == nil {
			w.timer.Reset(linger)
			late = w.timer.C
		}
		select {
		case a := <-l.queue:
			round = append(round, a)
			continue
		case <-late:
			late = nil
		}
		break
	}
	if late != nil {
		w.timer.Stop()
	}
	if len(round) >= w.usual {
		w.usual = len(round)
	} else {
		w.usual -= (w.usual - len(round) + 7) / 8 // a late caller or two change little
	}
	return round
}

// tick looks whether the files are as they were, and tries again what did not work.
func (l *Log) tick() {
	w := &l.writer
	if w.broken != nil {
		return
	}
	l.mu.Lock()
	blocked := l.blocked
	l.mu.Unlock()
	if blocked == nil {
		if err := l.check(); err != nil {
			_ = l.block(err)
			return
		}
		l.failures.flush(l, false)
		return
	}
	resumed := Event{
		Kind: Self, Op: "resumed", Time: l.cfg.Now().UTC(),
		Details: map[string]string{"why": string(fault.CodeOf(blocked)), "lost_since_start": fmt.Sprint(l.lost.Load())},
	}
	l.commit([]*appending{{events: []Event{resumed}}})
}

// check reports what somebody else did to the files.
func (l *Log) check() error {
	if found := l.tampered.Load(); found != nil {
		return *found
	}
	return errors.Join(l.writer.segment.check(), l.writer.hashes.check())
}

// commit writes a round and answers its calls.
func (l *Log) commit(round []*appending) {
	l.since.Store(time.Now().UnixNano())
	err := l.put(round)
	l.since.Store(0)
	if err != nil {
		err = l.block(err)
	} else {
		l.unblock()
	}
	for _, a := range round {
		if a.done != nil {
			a.done <- err
		}
	}
}

// block refuses everything from here on: until it works again, or, where the files are
// not what they should be, for good.
func (l *Log) block(err error) error {
	w := &l.writer
	if broken := (errBroken{}); w.broken == nil && (errors.As(err, &broken) || errors.Is(err, fault.AuditAltered)) {
		w.broken = err
	}
	why := fault.Wrap(fault.AuditBlocked, err, "the audit log cannot be written, and nothing is done that is not recorded")
	if w.broken != nil {
		why = fault.Wrap(fault.AuditBlocked, err, "the audit log is blocked until it was looked into (trikey audit verify) and the service restarted")
	}
	l.mu.Lock()
	first := l.blocked == nil
	l.blocked = why
	l.mu.Unlock()
	if first {
		l.cfg.Log.Error("the audit log is blocked", "error", err)
	}
	return why
}

func (l *Log) unblock() {
	l.mu.Lock()
	was := l.blocked
	l.blocked = nil
	l.head = l.writer.head
	due := l.head.size-l.signed.Size >= l.cfg.Every
	l.mu.Unlock()
	if was != nil {
		l.cfg.Log.Warn("the audit log is written again")
	}
	if due {
		l.wantCheckpoint()
	}
}

// put writes a round to the files, and waits for the disk. All of it counts or nothing.
func (l *Log) put(round []*appending) error {
	w := &l.writer
	if w.broken != nil {
		return w.broken
	}
	if err := l.check(); err != nil {
		return err
	}
	if w.segment.size >= l.cfg.SegmentSize {
		if err := w.rotate(l.cfg.Dir); err != nil {
			return err
		}
	}
	before := w.head
	if err := w.encode(round); err != nil {
		w.head = before
		return err
	}
	hashesBefore := w.hashes.size
	err := w.hashes.append(w.stored)
	if err == nil {
		err = w.segment.append(w.buf)
		if err != nil {
			err = errors.Join(err, w.hashes.cut(hashesBefore))
		}
	}
	if err != nil {
		w.head = before
		return err
	}
	// The hashes can be computed anew: their file is not waited for.
	w.syncs.Add(1)
	return w.segment.sync()
}

// encode makes lines and hashes of a round.
func (w *writer) encode(round []*appending) (err error) {
	w.buf, w.stored = w.buf[:0], w.stored[:0]
	for _, a := range round {
		for i := range a.events {
			e := &a.events[i]
			e.Number = w.head.size
			start := len(w.buf)
			if w.buf, err = e.appendLine(w.buf); err != nil {
				return err
			}
			line := w.buf[start:]
			if a.keep {
				a.lines = append(a.lines, append([]byte(nil), line...))
			}
			hashes, err := w.head.add(tlog.RecordHash(line))
			if err != nil {
				return err
			}
			for _, h := range hashes {
				w.stored = append(w.stored, h[:]...)
			}
			w.buf = append(w.buf, '\n')
		}
	}
	return nil
}

// rotate begins a new file of events.
func (w *writer) rotate(dir string) error {
	next, err := openFile(filepath.Join(dir, segmentName(w.head.size)), true)
	if err != nil {
		return err
	}
	old := w.segment
	w.segment = next
	return old.Close()
}
