package migrate

import (
	"bytes"
	"encoding/csv"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/trikey/trikey/internal/fault"
)

// csvFile is a CSV file (RFC 4180) with a header. Records keep their bytes: only
// the ciphertext within them is replaced, whatever is quoted around it.
type csvFile struct {
	cfg      *Config
	r        *csv.Reader
	read     bytes.Buffer // what r has read and no item has yet
	consumed int64        // bytes that items have
	lines    int64        // lines that items have
	before   int64        // lines before those
	columns  []string
	header   bool // the header is an item yet to come
}

func (c *Config) openCSV(f *os.File, offset, line int64) (source, error) {
	s := &csvFile{cfg: c, header: offset == 0, before: line}
	columns, err := csv.NewReader(f).Read()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.Wrap(fault.BadRequest, err, "%s: its header", f.Name())
	}
	if len(columns) > 0 {
		columns[0] = strings.TrimPrefix(columns[0], "\ufeff") // what spreadsheets put there
		if !slices.Contains(columns, c.Column) {
			return nil, fault.New(fault.Usage, "%s has no column %q (--column); it has %s", f.Name(), c.Column, strings.Join(columns, ", "))
		}
	}
	s.columns = columns
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	s.r = csv.NewReader(io.TeeReader(f, &s.read))
	s.r.FieldsPerRecord = -1 // a short record fails alone
	return s, nil
}

func (s *csvFile) next() (*item, error) {
	record, err := s.r.Read()
	if err != nil && !errors.Is(err, io.EOF) {
		var at *csv.ParseError
		line := s.before + s.lines + 1
		if errors.As(err, &at) {
			line, err = s.before+int64(at.Line), at.Err
		}
		// Where the next record begins nobody can tell.
		return nil, fault.Wrap(fault.BadRequest, err, "line %d is not CSV; mend the file and start anew", line)
	}
	end := s.r.InputOffset()
	it := &item{raw: bytes.Clone(s.read.Next(int(end - s.consumed)))}
	first := s.lines // lines before this item, in what r has read
	s.consumed = end
	s.lines += int64(bytes.Count(it.raw, []byte("\n")))
	it.length, it.line, it.through = len(it.raw), s.before+s.lines, s.before+s.lines
	switch {
	case err != nil && len(it.raw) == 0:
		return nil, errEnd
	case err != nil: // empty lines at the end
		it.outcome = noLine
		return it, nil
	case s.header:
		s.header, it.outcome = false, noLine
		return it, nil
	}
	line, _ := s.r.FieldPos(0)
	it.line = s.before + int64(line)
	if err := s.fill(it, record, first); err != nil {
		it.fail(err)
	}
	return it, nil
}

// fill finds the ciphertext of a record and where it stands.
func (s *csvFile) fill(it *item, record []string, first int64) error {
	column := slices.Index(s.columns, s.cfg.Column)
	if column >= len(record) {
		return fault.New(fault.BadRequest, "the record has %d of %d columns", len(record), len(s.columns))
	}
	if it.ciphertext = record[column]; it.ciphertext == "" {
		it.outcome = without
		return nil
	}
	line, col := s.r.FieldPos(column)
	at := 0
	for range int64(line) - first - 1 {
		at += bytes.IndexByte(it.raw[at:], '\n') + 1
	}
	at += col - 1
	if at < len(it.raw) && it.raw[at] == '"' {
		at++
	}
	if !bytes.HasPrefix(it.raw[min(at, len(it.raw)):], []byte(it.ciphertext)) {
		return fault.New(fault.DecryptFailed, "the column has no ciphertext")
	}
	it.at, it.end = at, at+len(it.ciphertext)
	return s.cfg.bind(it, func(name string) (string, error) {
		i := slices.Index(s.columns, name)
		if i < 0 || i >= len(record) {
			return "", missing(name)
		}
		return record[i], nil
	})
}
