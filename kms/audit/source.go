package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/go-json-experiment/json"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/trikey/trikey/internal/fault"
)

// source is a log to read: a directory, or an exported file.
type source struct {
	keys        *keyring
	start       *tree // of the events that are not there
	checkpoints [][]byte
	newest      Checkpoint
	hashes      *os.File // nil where there are none
	lines       func(func(line []byte) error) (torn int, err error)
	file        *os.File // the exported one
}

func (s *source) close() error {
	var err error
	for _, f := range []*os.File{s.hashes, s.file} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

func openSource(path string, o VerifyOptions) (*source, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, missing(path, err)
	case info.IsDir():
		return openDir(path, o)
	}
	return openExport(path, o)
}

// openDir reads the directory of a log, which a service may be writing: the checkpoints
// first, so that the events which they sign are there.
func openDir(dir string, o VerifyOptions) (*source, error) {
	k, err := readKeys(o.Keys, filepath.Join(dir, keysFile))
	if err != nil {
		return nil, err
	}
	s := &source{keys: k, start: &tree{}}
	newest, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if err != nil {
		return nil, altered("%s is missing: it was deleted", checkpointFile)
	}
	history, err := os.ReadFile(filepath.Join(dir, checkpointsFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if s.checkpoints, err = splitCheckpoints(history); err != nil {
		return nil, err
	}
	s.checkpoints = append(s.checkpoints, newest)
	if s.hashes, err = os.Open(filepath.Join(dir, hashesFile)); err != nil {
		s.hashes = nil // events and checkpoints say it all
	}
	list, err := segments(dir)
	if err == nil && len(list) == 0 {
		err = altered("every event was deleted: there is no file of events")
	}
	if err == nil && list[0].first > 0 {
		s.start, err = s.startAt(list[0].first, o.From)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.lines = func(f func([]byte) error) (int, error) { return readSegments(list, f) }
	return s, nil
}

// startAt takes a log whose oldest files are kept elsewhere.
func (s *source) startAt(first, accepted int64) (*tree, error) {
	if accepted != first {
		return nil, altered("events 0 to %d were deleted: their files are missing; if they are kept elsewhere, say so with --from %d", first-1, first)
	}
	if s.hashes == nil {
		return nil, altered("%s is missing, which the events before %d would need", hashesFile, first)
	}
	t, err := readTree(first, storedHashes{s.hashes})
	if err != nil {
		return nil, altered("%s is too short: it was truncated", hashesFile)
	}
	return t, nil
}

// readSegments calls f with every whole line; f may end it with errStop.
func readSegments(list []segment, f func([]byte) error) (torn int, err error) {
	number := list[0].first
	for i, s := range list {
		if s.first != number {
			return 0, altered("events %d to %d were deleted: %s begins with event %d", number, s.first-1, filepath.Base(s.path), s.first)
		}
		r, err := os.Open(s.path)
		if err != nil {
			return 0, err
		}
		_, rest, err := eachLine(r, func(line []byte) error { number++; return f(line) })
		_ = r.Close() // only read
		if errors.Is(err, errStop) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		if len(rest) > 0 && i < len(list)-1 {
			return 0, altered("event %d was truncated: the end of its line is missing", number)
		}
		torn = len(rest)
	}
	return torn, nil
}

// exported is the first line of an export: what is needed to verify it.
type exported struct {
	Format int         `json:"format"`
	Keys   string      `json:"keys"` // verifier keys, one a line
	From   int64       `json:"from"`
	Edge   []tlog.Hash `json:"edge,omitempty"` // of the tree of the events before that, from the lowest level
}

type exportHead struct {
	Export exported `json:"trikey_audit_export"`
}

type exportEnd struct {
	Checkpoint string `json:"checkpoint"`
}

// exportFormat is the version of the format of exports.
const exportFormat = 1

// Export writes the events of a log from a number on, up to its newest checkpoint, as
// lines of JSON between a line with what is needed to verify them and one with the
// checkpoint.
func Export(dir string, from int64, w io.Writer) (events int64, err error) {
	s, err := openDir(dir, VerifyOptions{From: from})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	newest := s.checkpoints[len(s.checkpoints)-1]
	c, err := openCheckpoint(newest, s.keys.list())
	if err != nil {
		return 0, err
	}
	if from < 0 || from > c.Size {
		return 0, fault.New(fault.Usage, "--from %d: the newest checkpoint signs %d events", from, c.Size)
	}
	keys, err := os.ReadFile(filepath.Join(dir, keysFile))
	if err != nil {
		return 0, err
	}
	head := exportHead{exported{Format: exportFormat, Keys: string(keys), From: from}}
	if s.hashes == nil && from > 0 {
		return 0, altered("%s is missing, which an export from event %d needs", hashesFile, from)
	}
	if from > 0 {
		_, indexes := edgeIndexes(from)
		if head.Export.Edge, err = (storedHashes{s.hashes}).ReadHashes(indexes); err != nil {
			return 0, altered("%s is too short: it was truncated", hashesFile)
		}
	}
	out := bufio.NewWriterSize(w, 256<<10)
	if err := writeLine(out, head); err != nil {
		return 0, err
	}
	number := s.start.size
	_, err = s.lines(func(line []byte) error {
		if number >= c.Size {
			return errStop
		}
		if number++; number <= from {
			return nil
		}
		events++
		_, err := fmt.Fprintf(out, "%s\n", line)
		return err
	})
	if err != nil {
		return events, err
	}
	if err := writeLine(out, exportEnd{string(newest)}); err != nil {
		return events, err
	}
	return events, out.Flush()
}

func writeLine(w io.Writer, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", raw)
	return err
}

// openExport reads what Export wrote.
func openExport(path string, o VerifyOptions) (_ *source, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, missing(path, err)
	}
	s := &source{file: f}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	lines := 0
	var head exportHead
	var end exportEnd
	_, rest, err := eachLine(f, func(line []byte) error {
		if lines++; lines == 1 {
			return json.Unmarshal(line, &head, json.RejectUnknownMembers(true))
		}
		if bytes.HasPrefix(line, []byte(`{"checkpoint":`)) {
			return json.Unmarshal(line, &end)
		}
		return nil
	})
	switch {
	case err != nil || head.Export.Format != exportFormat:
		return s, altered("%s is not an export of an audit log, or its first line was edited", filepath.Base(path))
	case len(rest) > 0 || end.Checkpoint == "":
		return s, altered("the export was truncated: its last line, the checkpoint, is missing")
	}
	if s.keys, err = readKeys(cmp.Or(o.Keys, head.Export.Keys), ""); err != nil {
		return s, err
	}
	s.checkpoints = [][]byte{[]byte(end.Checkpoint)}
	s.start = &tree{size: head.Export.From}
	levels, _ := edgeIndexes(head.Export.From)
	if head.Export.From < 0 || len(levels) != len(head.Export.Edge) {
		return s, altered("the export's first line was edited")
	}
	for i, level := range levels {
		s.start.edge[level] = head.Export.Edge[i]
	}
	s.lines = func(take func([]byte) error) (int, error) {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		at := 0
		_, _, err := eachLine(f, func(line []byte) error {
			if at++; at == 1 || at == lines {
				return nil
			}
			return take(line)
		})
		if errors.Is(err, errStop) {
			err = nil
		}
		return 0, err
	}
	return s, nil
}
