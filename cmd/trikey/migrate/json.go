package migrate

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/trikey/trikey/internal/fault"
)

// jsonLines is a file of JSON objects, one a line.
type jsonLines struct {
	cfg  *Config
	r    *bufio.Reader
	line int64
}

func (c *Config) openJSON(f *os.File, offset, line int64) (source, error) {
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	return &jsonLines{cfg: c, r: bufio.NewReaderSize(f, 256<<10), line: line}, nil
}

func (j *jsonLines) next() (*item, error) {
	raw, err := j.r.ReadBytes('\n')
	switch {
	case errors.Is(err, io.EOF) && len(raw) == 0:
		return nil, errEnd
	case err != nil && !errors.Is(err, io.EOF):
		return nil, fault.Wrap(fault.BadRequest, err, "--in")
	}
	j.line++
	it := &item{raw: raw, length: len(raw), line: j.line, through: j.line, quote: true}
	if err := j.read(it); err != nil {
		it.fail(err)
	}
	return it, nil
}

func (j *jsonLines) read(it *item) error {
	text := bytes.TrimSpace(it.raw)
	if len(text) == 0 {
		it.outcome = noLine
		return nil
	}
	if !jsontext.Value(text).IsValid() {
		return fault.New(fault.BadRequest, "the line is not valid JSON")
	}
	value, at, err := find(it.raw, j.cfg.Field)
	switch {
	case err != nil:
		return err
	case value == nil || value.Kind() == 'n':
		it.outcome = without
		return nil
	case value.Kind() != '"':
		return fault.New(fault.BadRequest, "%s is not a string", j.cfg.Field)
	}
	it.at, it.end = at, at+len(value)
	if it.ciphertext, err = unquote(value); err != nil {
		return err
	}
	if it.ciphertext == "" {
		it.outcome = without
		return nil
	}
	return j.cfg.bind(it, func(field string) (string, error) { return fieldOf(it.raw, field) })
}

// fieldOf returns a field as the text of a context: strings as they are, numbers and
// booleans as they are written.
func fieldOf(raw []byte, field string) (string, error) {
	value, _, err := find(raw, field)
	if err != nil {
		return "", err
	}
	if value == nil {
		return "", missing(field)
	}
	switch value.Kind() {
	case '"':
		return unquote(value)
	case '0', 't', 'f':
		return string(value), nil
	}
	return "", missing(field)
}

func unquote(value jsontext.Value) (string, error) {
	text, err := jsontext.AppendUnquote(nil, value)
	if err != nil {
		return "", fault.New(fault.BadRequest, "the line is not valid JSON")
	}
	return string(text), nil
}

// pathOf reads a.b or, where names have dots in them, /a/b (RFC 6901).
func pathOf(field string) []string {
	if strings.HasPrefix(field, "/") {
		var path []string
		for token := range jsontext.Pointer(field).Tokens() {
			path = append(path, token)
		}
		return path
	}
	return strings.Split(strings.TrimPrefix(field, "."), ".")
}

// find returns the value at a path of object members, and where it stands; nil
// where there is none.
func find(raw []byte, field string) (value jsontext.Value, at int, err error) {
	value, at = raw, 0
	for _, name := range pathOf(field) {
		var within int
		if value, within, err = member(value, name); value == nil || err != nil {
			return nil, 0, err
		}
		at += within
	}
	return value, at, nil
}

// member returns a member of an object, and where it stands.
func member(object jsontext.Value, name string) (jsontext.Value, int, error) {
	bad := func(err error) (jsontext.Value, int, error) {
		return nil, 0, fault.Wrap(fault.BadRequest, err, "the line is not valid JSON")
	}
	d := jsontext.NewDecoder(bytes.NewReader(object))
	if d.PeekKind() != '{' {
		return nil, 0, nil
	}
	if _, err := d.ReadToken(); err != nil {
		return bad(err)
	}
	for d.PeekKind() == '"' {
		key, err := d.ReadToken()
		if err != nil {
			return bad(err)
		}
		if key.String() != name {
			if err := d.SkipValue(); err != nil {
				return bad(err)
			}
			continue
		}
		value, err := d.ReadValue()
		if err != nil {
			return bad(err)
		}
		return value.Clone(), int(d.InputOffset()) - len(value), nil
	}
	return nil, 0, nil
}
