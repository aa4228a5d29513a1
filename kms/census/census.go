// Package census counts which key versions the ciphertexts in files were sealed with,
// from their headers alone: no key and no service is needed. A key version that a
// census still finds in use is not one to destroy.
//
// It looks for ciphertexts anywhere in a file, whatever the file's format is: the
// text form wherever it stands (JSON lines, CSV, dumps), and files that are
// one stream or one ciphertext in binary form. Where it errs, it counts what only looks
// like a ciphertext. It does not see into what is compressed, or encoded once more.
package census

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
)

// Census is the outcome of a count.
type Census struct {
	Made       time.Time `json:"made"` // when the count began: what was written later is not in it
	Sources    []string  `json:"sources"`
	Files      int       `json:"files"`
	Bytes      int64     `json:"bytes"`
	Unreadable int64     `json:"unreadable"` // begin as a ciphertext does, but are none
	Keys       []Use     `json:"keys"`       // in the order of index and version
}

// Use is how many ciphertexts are under one version of a key.
type Use struct {
	Key         uint32 `json:"key"`
	Version     uint32 `json:"version"`
	Ciphertexts int64  `json:"ciphertexts"`
	Streams     int64  `json:"streams,omitzero"`
}

// Compare orders uses by index and version.
func (u Use) Compare(other Use) int {
	return cmp.Or(cmp.Compare(u.Key, other.Key), cmp.Compare(u.Version, other.Version))
}

// Load reads a census that Save wrote.
func Load(path string) (*Census, error) {
	c := &Census{}
	found, err := durable.Read(path, c)
	if err == nil && !found {
		err = fault.New(fault.NotFound, "there is no census %s; trikey key census --save makes one", path)
	}
	return c, err
}

// Save replaces the file at path.
func (c *Census) Save(path string) error {
	dir, name := filepath.Split(path)
	return durable.Write(cmp.Or(dir, "."), name, c)
}

// Uses returns how many ciphertexts and streams are under a version of a key.
func (c *Census) Uses(index, version uint32) int {
	if at, found := c.find(index, version); found {
		return int(c.Keys[at].Ciphertexts + c.Keys[at].Streams)
	}
	return 0
}

func (c *Census) find(index, version uint32) (int, bool) {
	return slices.BinarySearchFunc(c.Keys, Use{Key: index, Version: version}, Use.Compare)
}

func (c *Census) use(index, version uint32) *Use {
	at, found := c.find(index, version)
	if !found {
		c.Keys = slices.Insert(c.Keys, at, Use{Key: index, Version: version})
	}
	return &c.Keys[at]
}

// Count reads a file, or every file of a directory and those in it. Progress is told
// of bytes that were read, and may be nil.
func (c *Census) Count(ctx context.Context, source string, progress func(int64)) error {
	c.Sources = append(c.Sources, source)
	root, err := filepath.EvalSymlinks(source) // which a walk does not
	if err != nil {
		return fault.Wrap(fault.Usage, err, "the files to count")
	}
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fault.Wrap(fault.Usage, err, "the files to count")
		}
		if err := ctx.Err(); err != nil || d.IsDir() {
			return err
		}
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return fault.Wrap(fault.Usage, err, "the files to count")
		case info.IsDir():
			return fault.New(fault.Usage, "%s is a link to a directory: count that by itself, and leave the link out", path)
		case !info.Mode().IsRegular():
			return nil // a socket or device has no ciphertexts
		}
		return c.file(ctx, path, progress)
	})
}

func (c *Census) file(ctx context.Context, path string, progress func(int64)) error {
	f, err := os.Open(path)
	if err != nil {
		return fault.Wrap(fault.Usage, err, "the files to count")
	}
	defer func() { _ = f.Close() }()
	c.Files++
	return c.Read(&reader{ctx, f, progress})
}

// reader stops when its context ends, and tells what it has read.
type reader struct {
	ctx      context.Context
	from     io.Reader
	progress func(int64)
}

// Read reads.
func (r *reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.from.Read(b)
	if r.progress != nil {
		r.progress(int64(n))
	}
	return n, err
}

// Read counts what is in one file.
func (c *Census) Read(from io.Reader) error {
	r := bufio.NewReaderSize(from, 256<<10)
	c.binary(r)
	var s scanner
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		c.Bytes += int64(n)
		for _, b := range buf[:n] {
			if token := s.next(b); token != nil {
				c.text(token)
			}
		}
		if errors.Is(err, io.EOF) {
			if s.token != nil {
				c.text(s.token)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// binary looks whether the file is a ciphertext or a stream itself.
func (c *Census) binary(r *bufio.Reader) {
	// What is wrong with the file, reading it will tell.
	head, _ := r.Peek(envelope.Overhead)
	if h, _, err := envelope.ParseStream(head); err == nil && known(h.Suite) {
		c.use(h.Index, h.Version).Streams++
	}
	if h, _, err := envelope.Parse(head); err == nil && known(h.Suite) {
		c.use(h.Index, h.Version).Ciphertexts++
	}
}

// known keeps most other binary files from being counted. It has room for suites to
// come.
func known(suite byte) bool { return suite >= 1 && suite < 128 }

func (c *Census) text(token []byte) {
	raw, err := envelope.DecodeText(nil, append([]byte(envelope.TextPrefix), token...))
	if err == nil {
		var h envelope.Header
		if h, _, err = envelope.Parse(raw); err == nil {
			c.use(h.Index, h.Version).Ciphertexts++
		}
	}
	if err != nil {
		c.Unreadable++
	}
}

// scanner finds ciphertexts in text. What stands before one does not matter: in a
// dump that may be anything, as the n of an escaped line end, or another one.
type scanner struct {
	last  [len(envelope.TextPrefix)]byte // the last bytes
	token []byte                         // what follows a prefix, as much as has a header; nil outside
}

// tokenSize is the base64 of the shortest ciphertext.
const tokenSize = (envelope.Overhead*4 + 2) / 3

// next takes a byte, and returns what a prefix was followed by where that has ended.
func (s *scanner) next(b byte) (ended []byte) {
	copy(s.last[:], s.last[1:])
	s.last[len(s.last)-1] = b
	switch {
	case s.token == nil:
	case !isBase64URL(b):
		ended, s.token = s.token, nil
	case len(s.token) < tokenSize:
		s.token = append(s.token, b)
	}
	if string(s.last[:]) == envelope.TextPrefix {
		s.token = make([]byte, 0, tokenSize)
	}
	return ended
}

func isBase64URL(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-' || b == '_'
}
