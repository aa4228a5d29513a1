package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
)

// New opens the log of a directory, and creates it where there is none. One process has
// it at a time: the caller sees to that. A record that a crash cut short is taken off,
// unless a checkpoint covers it.
//
// A log that is not what it was when the service stopped is opened all the same, but
// blocked: the machine can still be looked at and sealed.
func New(ctx context.Context, cfg Config) (*Log, error) {
	cfg.fill()
	l := &Log{
		cfg: cfg, queue: make(chan *appending, queueLength), stop: make(chan struct{}), written: make(chan struct{}),
		signOff: make(chan struct{}), want: make(chan struct{}, 1), changed: make(chan struct{}),
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.BadConfig, err, "the directory of the audit log")
	}
	err := l.open(ctx)
	switch {
	case errors.Is(err, fault.AuditAltered):
		_ = l.block(err)
	case err != nil:
		return nil, errors.Join(fault.Wrap(fault.AuditBlocked, err, "the audit log %s cannot be opened", cfg.Dir), l.writer.close())
	}
	for _, s := range cfg.Sinks {
		l.shippers = append(l.shippers, newShipper(s, cfg.Log))
	}
	go l.write()
	l.running.Add(1)
	go l.signing(context.WithoutCancel(ctx)) // until Close, whoever opened it
	return l, nil
}

func (l *Log) open(ctx context.Context) error {
	public, err := l.cfg.Signer.AuditKey(ctx)
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(l.cfg.Dir, keysFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l.create(ctx)
	case err != nil:
		return err
	}
	if l.keys, err = parseKeys(string(raw)); err != nil {
		return err
	}
	l.origin = l.keys.origin
	var found recovered
	if found, err = l.recover(); err != nil {
		return err
	}
	events := []Event{}
	if found.torn > 0 || found.unsigned > 0 {
		l.cfg.Log.Warn("the audit log was not closed; it is complete up to its last whole event", "events after the last checkpoint", found.unsigned,
			"bytes of an event cut short", found.torn)
		events = append(events, Event{Kind: Self, Op: "recovered", Details: map[string]string{
			"torn_bytes": fmt.Sprint(found.torn), "after_checkpoint": fmt.Sprint(found.unsigned),
		}})
	}
	if !l.keys.has(public) {
		text, err := l.keys.add(public)
		if err == nil {
			err = appendDurably(filepath.Join(l.cfg.Dir, keysFile), []byte(text+"\n"))
		}
		if err != nil {
			return err
		}
		events = append(events, Event{Kind: Self, Op: "key", Details: map[string]string{"fingerprint": Fingerprint(public)}})
	}
	return l.first(events)
}

// first records events before anybody else does.
func (l *Log) first(events []Event) error {
	if len(events) == 0 {
		return nil
	}
	a := &appending{events: events, done: make(chan error, 1)}
	l.stamp(a)
	err := l.put([]*appending{a})
	if errors.Is(err, fault.AuditAltered) {
		return err
	}
	if err != nil {
		_ = l.block(err) // a full disk: it is tried again
		return nil
	}
	l.head = l.writer.head
	return nil
}

// create makes a new log. The file of keys comes last: without it, what is there is a
// creation that was cut short.
func (l *Log) create(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(l.cfg.Dir, checkpointFile)); err == nil {
		return altered("%s is missing; put it back, or move the whole directory away to begin a new log", keysFile)
	}
	left, err := segments(l.cfg.Dir)
	if err != nil {
		return err
	}
	for _, s := range left {
		if s.first > 0 {
			return altered("%s and %s are missing; put them back, or move the whole directory away to begin a new log", keysFile, checkpointFile)
		}
		if err := os.Remove(s.path); err != nil {
			return err
		}
	}
	if err := durable.Remove(l.cfg.Dir, hashesFile, checkpointsFile); err != nil {
		return err
	}
	public, err := l.cfg.Signer.AuditKey(ctx)
	if err != nil {
		return err
	}
	l.keys = &keyring{}
	text, err := l.keys.add(public)
	if err != nil {
		return err
	}
	l.origin = l.keys.origin
	w := &l.writer
	if w.segment, err = openFile(filepath.Join(l.cfg.Dir, segmentName(0)), true); err != nil {
		return err
	}
	if w.hashes, err = openFile(filepath.Join(l.cfg.Dir, hashesFile), true); err != nil {
		return err
	}
	if l.reader, err = os.Open(filepath.Join(l.cfg.Dir, hashesFile)); err != nil {
		return err
	}
	created := &appending{events: []Event{{Kind: Self, Op: "created", Details: map[string]string{"origin": l.origin, "fingerprint": Fingerprint(public)}}}}
	l.stamp(created)
	if err := l.put([]*appending{created}); err != nil {
		return err
	}
	l.head = w.head
	if l.sign(ctx); l.signErr != nil {
		return l.signErr
	}
	return durable.WriteBytes(l.cfg.Dir, keysFile, []byte(text+"\n"))
}

// recovered is what an opened log was found to need.
type recovered struct {
	torn     int   // bytes of an event that a crash cut short
	unsigned int64 // events after the last checkpoint
}

// recover opens the files, and brings them to where each is what the others say.
func (l *Log) recover() (found recovered, err error) {
	dir, w := l.cfg.Dir, &l.writer
	raw, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if err != nil {
		return found, altered("%s is missing or cannot be read; put it back: the newest is in %s and wherever checkpoints are shipped to",
			checkpointFile, checkpointsFile)
	}
	if l.signed, err = openCheckpoint(raw, l.keys.list()); err != nil {
		return found, err
	}
	l.signed.at = l.cfg.Now()
	if err := cutTorn(filepath.Join(dir, checkpointsFile)); err != nil {
		return found, err
	}
	if w.hashes, err = openFile(filepath.Join(dir, hashesFile), false); errors.Is(err, fs.ErrNotExist) {
		w.hashes, err = openFile(filepath.Join(dir, hashesFile), true)
	}
	if err != nil {
		return found, err
	}
	if l.reader, err = os.Open(w.hashes.path); err != nil {
		return found, err
	}
	list, err := segments(dir)
	if err != nil {
		return found, err
	}
	// Where the hashes are what the checkpoint signs, events from there on are enough.
	from := l.signed.Size
	t, err := readTree(from, storedHashes{l.reader})
	if err != nil || t.root() != l.signed.Root {
		from, t = 0, &tree{} // compute them anew, from all events
	}
	w.head = *t
	if w.hashes.size > storedSize(from) {
		if err := w.hashes.cut(storedSize(from)); err != nil {
			return found, err
		}
	}
	if len(list) == 0 || list[0].first > from {
		return found, altered("the file with event %d is missing; put it back", from)
	}
	if err := l.replay(list, from, &found); err != nil {
		return found, err
	}
	if from == 0 && l.signed.Size > 0 {
		again, err := readTree(l.signed.Size, storedHashes{l.reader})
		if err != nil || again.root() != l.signed.Root {
			return found, altered("the events are not those that the newest checkpoint signs; trikey audit verify names the first that was edited")
		}
	}
	l.head = w.head
	return found, nil
}

// replay takes in the events from a number on, and compares those before it that are in
// the same file with their hashes.
func (l *Log) replay(list []segment, from int64, found *recovered) error {
	w := &l.writer
	at := 0
	for i, s := range list {
		if s.first <= from {
			at = i
		}
	}
	number := list[at].first
	for i, s := range list[at:] {
		last := at+i == len(list)-1
		if s.first != number {
			return altered("%s does not begin where the file before it ends, at event %d: events were deleted", filepath.Base(s.path), number)
		}
		f, err := openFile(s.path, false)
		if err != nil {
			return err
		}
		w.segment = f
		whole, rest, err := l.replayFile(f, &number, from)
		if err != nil {
			return err
		}
		if int64(len(rest)) > 0 || whole < f.size {
			if !last || number < l.signed.Size {
				return altered("event %d is cut short, and a checkpoint covers it: it was truncated", number)
			}
			found.torn = int(f.size - whole)
			if err := f.cut(whole); err != nil {
				return err
			}
		}
		if !last {
			if err := f.Close(); err != nil {
				return err
			}
		}
	}
	if number < l.signed.Size {
		return altered("events %d to %d are missing, and a checkpoint covers them: the log was truncated", number, l.signed.Size-1)
	}
	found.unsigned = number - l.signed.Size
	if err := w.hashes.sync(); err != nil {
		return err
	}
	return w.segment.sync()
}

func (l *Log) replayFile(f *file, number *int64, from int64) (whole int64, rest []byte, err error) {
	w := &l.writer
	var stored []byte
	reader := storedHashes{l.reader}
	whole, rest, err = eachLine(io.NewSectionReader(f, 0, f.size), func(line []byte) error {
		n := *number
		e, err := parseLine(line)
		if err != nil || e.Number != n {
			return altered("event %d is not what stands in its place in %s: it was edited, deleted or moved", n, filepath.Base(f.path))
		}
		*number++
		hash := tlog.RecordHash(line)
		if n < from {
			have, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(0, n)})
			if err != nil || have[0] != hash {
				return altered("event %d was edited", n)
			}
			return nil
		}
		hashes, err := w.head.add(hash)
		for _, h := range hashes {
			stored = append(stored, h[:]...)
		}
		if len(stored) > 1<<20 && err == nil {
			err = w.hashes.append(stored)
			stored = stored[:0]
		}
		return err
	})
	if err != nil {
		return whole, rest, err
	}
	return whole, rest, w.hashes.append(stored)
}

// cutTorn takes off what follows the last newline of a file.
func cutTorn(path string) error {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (len(raw) == 0 || raw[len(raw)-1] == '\n') {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Truncate(path, int64(bytes.LastIndexByte(raw, '\n')+1))
}
