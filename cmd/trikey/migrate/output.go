package migrate

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"

	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
)

// state is a checkpoint: all that it tells of is on the disk.
type state struct {
	Job      string    `json:"job"` // what the job does, as a digest: another job does not go on with it
	Size     int64     `json:"input_size"`
	Modified time.Time `json:"input_modified"`
	Offset   int64     `json:"input_done"` // bytes
	Line     int64     `json:"input_lines_done"`
	Output   int64     `json:"output_bytes"`
	Failed   int64     `json:"failed_bytes"`
	Counts   counts    `json:"counts"`
	Done     bool      `json:"done"`
}

// output is an output with its checkpoint.
type output struct {
	path   string
	state  state
	file   *os.File // locked: one job at a time
	failed *os.File // nil until a line failed
}

// openOutput opens an output at its checkpoint, a new one at its beginning.
func openOutput(c *Config, p pair) (o *output, err error) {
	o = &output{path: p.out}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	if err := os.MkdirAll(filepath.Dir(p.out), 0o700); err != nil {
		return o, fault.Wrap(fault.Usage, err, "--out")
	}
	fresh, err := o.begin(c, p)
	if err != nil {
		return o, err
	}
	if o.file, err = os.OpenFile(p.out, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return o, fault.Wrap(fault.Usage, err, "--out")
	}
	if err := unix.Flock(int(o.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return o, fault.New(fault.Conflict, "%s is being written by another migration", p.out)
	}
	if err := tidy(p.out + checkpointSuffix); err != nil {
		return o, err
	}
	// Read again: the one that had the lock may have gone on.
	if _, err := o.begin(c, p); err != nil {
		return o, err
	}
	if fresh {
		if err := o.save(); err != nil {
			return o, err
		}
	}
	return o, o.rewind()
}

// begin reads the checkpoint, and reports whether there is none yet. An output without
// one is somebody's file: it is left alone.
func (o *output) begin(c *Config, p pair) (fresh bool, err error) {
	in, err := os.Stat(p.in)
	if err != nil {
		return false, fault.Wrap(fault.Usage, err, "--in")
	}
	job, err := c.digest(p)
	if err != nil {
		return false, err
	}
	o.state = state{}
	found, err := durable.Read(p.out+checkpointSuffix, &o.state)
	if err != nil {
		return false, err
	}
	if !found {
		if out, err := os.Stat(p.out); err == nil && out.Size() > 0 {
			return false, fault.New(fault.Conflict, "%s is there already, and no checkpoint beside it; name another --out", p.out)
		}
		o.state = state{Job: job, Size: in.Size(), Modified: in.ModTime().UTC(), Counts: counts{}.clone()}
		return true, nil
	}
	switch {
	case o.state.Job != job:
		return false, fault.New(fault.Conflict, "%s was begun by another migration; name another --out", p.out)
	case o.state.Size != in.Size() || !o.state.Modified.Equal(in.ModTime()):
		return false, fault.New(fault.Conflict, "%s has changed since its migration began; remove %s and %s to start anew", p.in, p.out, p.out+checkpointSuffix)
	}
	o.state.Counts = o.state.Counts.clone()
	return false, nil
}

// digest names the job: what it does with a line, and which file it reads.
func (c *Config) digest(p pair) (string, error) {
	raw, err := json.Marshal([]any{c.From, c.FromVersion, c.To, c.Field, c.Column, c.Context, c.ToContext, p.in}, json.Deterministic(true))
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), err
}

// rewind cuts off what was written after the checkpoint.
func (o *output) rewind() error {
	if err := cutTo(o.file, o.state.Output); err != nil {
		return err
	}
	failed, err := os.OpenFile(o.path+failedSuffix, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) && o.state.Failed == 0 {
		return nil
	}
	if err != nil {
		return fault.Wrap(fault.Conflict, err, "the list of failed lines")
	}
	o.failed = failed
	return cutTo(failed, o.state.Failed)
}

func cutTo(f *os.File, size int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < size {
		return fault.New(fault.Conflict, "%s has %d bytes, its checkpoint says %d: somebody shortened it; remove it and its checkpoint to start anew", f.Name(), info.Size(), size)
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	_, err = f.Seek(size, io.SeekStart)
	return err
}

// failedLine is a line of OUT.failed. It has nothing of the line's content.
type failedLine struct {
	Line   int64      `json:"line"`
	Code   fault.Code `json:"code"`
	Detail string     `json:"detail"`
}

// commit appends items, and has them and a new checkpoint on the disk before it
// returns.
func (o *output) commit(items []*item, end bool) error {
	next := o.state
	next.Counts, next.Done = o.state.Counts.clone(), end
	var lines, failures bytes.Buffer
	for _, it := range items {
		next.Counts.count(it)
		lines.Write(it.raw)
		next.Offset += int64(it.length)
		next.Line = it.through
		if it.outcome == failed {
			raw, err := json.Marshal(failedLine{it.line, fault.CodeOf(it.err), it.err.Error()})
			if err != nil {
				return err
			}
			failures.Write(append(raw, '\n'))
		}
	}
	next.Output += int64(lines.Len())
	next.Failed += int64(failures.Len())
	if _, err := o.file.Write(lines.Bytes()); err != nil {
		return err
	}
	if err := o.file.Sync(); err != nil {
		return err
	}
	if failures.Len() > 0 {
		if err := o.listFailed(failures.Bytes()); err != nil {
			return err
		}
	}
	o.state = next
	return o.save()
}

func (o *output) listFailed(lines []byte) (err error) {
	if o.failed == nil {
		if o.failed, err = os.OpenFile(o.path+failedSuffix, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600); err != nil {
			return err
		}
	}
	if _, err := o.failed.Write(lines); err != nil {
		return err
	}
	return o.failed.Sync()
}

func (o *output) save() error {
	dir, name := split(o.path + checkpointSuffix)
	return durable.Write(dir, name, o.state)
}

// Save replaces the file at path by the report.
func (r *Report) Save(path string) error {
	dir, name := split(path)
	return errors.Join(tidy(path), durable.Write(dir, name, r))
}

// tidy removes what killed runs were about to replace a file by.
func tidy(path string) error {
	dir, name := split(path)
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name+".new-") {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

func split(path string) (dir, name string) {
	if dir, name = filepath.Split(path); dir == "" {
		dir = "."
	}
	return dir, name
}

func (o *output) close() {
	for _, f := range []*os.File{o.file, o.failed} {
		if f != nil {
			_ = f.Close()
		}
	}
}
