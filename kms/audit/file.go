package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trikey/trikey/internal/fault"
)

// Names in the log's directory.
const (
	segmentPrefix   = "events-"
	segmentSuffix   = ".jsonl"            // events-0000000000000000.jsonl: the events from that number on
	hashesFile      = "hashes"            // of the tree, as tlog stores them
	checkpointFile  = "checkpoint"        // the newest
	checkpointsFile = "checkpoints.jsonl" // every one there was
	keysFile        = "keys"              // the public keys they are signed with, as verifier keys (c2sp.org/signed-note)
)

// file is a file that only we append to. What others do to it is noticed.
type file struct {
	*os.File
	path  string
	size  int64
	mtime time.Time // after our last write
}

// openFile opens a file that is there, or makes it.
func openFile(path string, create bool) (*file, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	x := &file{File: f, path: path}
	if create {
		err = syncDir(filepath.Dir(path))
	}
	if err == nil {
		err = x.settle()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return x, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// settle takes the file as it is.
func (f *file) settle() error {
	info, err := f.Stat()
	if err == nil {
		f.size, f.mtime = info.Size(), info.ModTime()
	}
	return err
}

// check reports what somebody else did to the file.
func (f *file) check() error {
	name := filepath.Base(f.path)
	there, err := os.Lstat(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return altered("%s was deleted under the running service", name)
	}
	if err != nil {
		return altered("%s cannot be looked at: %v", name, err)
	}
	ours, err := f.Stat()
	switch {
	case err != nil:
		return altered("%s cannot be looked at: %v", name, err)
	case !os.SameFile(there, ours):
		return altered("%s was replaced under the running service", name)
	case ours.Size() != f.size:
		return altered("%s has %d bytes, but the service wrote %d: somebody else changed it", name, ours.Size(), f.size)
	case !ours.ModTime().Equal(f.mtime):
		return altered("%s was written to at %s by somebody else", name, ours.ModTime().Format(time.RFC3339Nano))
	}
	return nil
}

func altered(format string, args ...any) error {
	return fault.New(fault.AuditAltered, "the audit log was altered: "+format, args...)
}

// append writes at the end; what was written in part is taken back.
func (f *file) append(b []byte) error {
	if _, err := f.WriteAt(b, f.size); err != nil {
		return errors.Join(err, f.cut(f.size))
	}
	f.size += int64(len(b))
	return f.settleAt(f.size)
}

// cut takes the end off.
func (f *file) cut(size int64) error {
	if err := f.Truncate(size); err != nil {
		return errBroken{err}
	}
	return f.settleAt(size)
}

func (f *file) settleAt(size int64) error {
	if err := f.settle(); err != nil {
		return errBroken{err}
	}
	if f.size != size {
		return altered("%s has %d bytes, but the service wrote %d: somebody else changed it", filepath.Base(f.path), f.size, size)
	}
	return nil
}

// sync brings the content to the disk. After a sync that failed nobody knows what is
// there: the log stays blocked until it is read anew.
func (f *file) sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return errBroken{fmt.Errorf("fdatasync %s: %w", filepath.Base(f.path), err)}
		}
		return nil
	}
}

// errBroken is a failure after which the files must be read anew.
type errBroken struct{ error }

func (e errBroken) Unwrap() error { return e.error }

func segmentName(first int64) string {
	return fmt.Sprintf("%s%016d%s", segmentPrefix, first, segmentSuffix)
}

// segment is one file of events.
type segment struct {
	first int64
	path  string
}

// segments lists the files of events, in order.
func segments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, err
	}
	var list []segment
	for _, e := range entries {
		number, ours := strings.CutPrefix(e.Name(), segmentPrefix)
		number, full := strings.CutSuffix(number, segmentSuffix)
		first, err := strconv.ParseInt(number, 10, 64)
		if ours && full && err == nil {
			list = append(list, segment{first, filepath.Join(dir, e.Name())})
		}
	}
	return list, nil
}

// maxLine bounds one event: many times what a management operation needs.
const maxLine = 1 << 20

// eachLine calls f with every whole line of r, and returns how many bytes those have,
// and what follows the last newline.
func eachLine(r io.Reader, f func(line []byte) error) (whole int64, rest []byte, err error) {
	b := bufio.NewReaderSize(r, 256<<10)
	var long []byte
	for {
		part, err := b.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull) && len(long) < maxLine:
			long = append(long, part...)
			continue
		case errors.Is(err, io.EOF):
			return whole, append(long, part...), nil
		case err != nil:
			return whole, nil, err
		}
		line := part
		if len(long) > 0 {
			line = append(long, part...)
			long = nil
		}
		whole += int64(len(line))
		if err := f(bytes.TrimSuffix(line, []byte{'\n'})); err != nil {
			return whole, nil, err
		}
	}
}
