// Package migrate seals the ciphertexts in files anew, under another key or the newest
// version of their own, without their plaintexts leaving the machine.
//
// A job reads each input from its beginning and appends to its output, in batches. A
// checkpoint beside the output says how far both are; it is written only when what it
// says is on the disk. So a job may end at any moment, kill -9 included, and the next
// run goes on where the checkpoint is: what the output has beyond it is cut off and
// made again. No line is lost, and none is there twice.
package migrate

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/sdk"
)

// Client is what a job asks of the service; *sdk.Client is one.
type Client interface {
	ReEncryptBatch(ctx context.Context, requests []sdk.ReEncryptRequest) ([]sdk.SealedResult, error)
}

// Config says what a job does.
type Config struct {
	Client      Client
	From        uint32  // the key index whose ciphertexts are sealed anew
	FromVersion uint32  // only those of this version; 0 is any
	To          sdk.Key // the key that seals

	In  string // a file, or a directory whose files are all read
	Out string // a file, or a directory that gets files of the same names

	Field     string    // where a JSON line has its ciphertext, as a.b or /a/b (RFC 6901)
	Column    string    // where a CSV file (*.csv) has it, by its header
	Context   []Binding // of the ciphertexts
	ToContext []Binding // of the new ones; nil is the same

	Progress func(bytes int64) // told how much input is done, from time to time; may be nil
}

// Report is the outcome of a job, over all its runs.
type Report struct {
	Files       int              `json:"files"`
	Lines       int64            `json:"lines"`
	Reencrypted int64            `json:"reencrypted"`
	Skipped     int64            `json:"skipped"` // of another key or version: kept as they were
	Without     int64            `json:"without"` // no ciphertext in them: kept as they were
	FailedLines int64            `json:"failed_lines"`
	Failed      map[string]int64 `json:"failed"` // by code: kept as they were, and listed in OUT.failed
	Complete    bool             `json:"complete"`
}

func (r *Report) add(c counts) {
	r.Lines += c.Lines
	r.Reencrypted += c.Reencrypted
	r.Skipped += c.Skipped
	r.Without += c.Without
	for code, n := range c.Failed {
		r.Failed[code] += n
		r.FailedLines += n
	}
}

// What stands beside an output.
const (
	checkpointSuffix = ".migrate.json"
	failedSuffix     = ".failed"
)

// pair is an input and its output.
type pair struct{ in, out string }

// Size returns how many bytes of input a job has.
func (c *Config) Size() (size int64, err error) {
	pairs, err := c.pairs()
	if err != nil {
		return 0, err
	}
	for _, p := range pairs {
		info, err := os.Stat(p.in)
		if err != nil {
			return 0, err
		}
		size += info.Size()
	}
	return size, nil
}

// Run does what is left of the job. The report counts what is done also when it
// fails; then the same call goes on with it.
func Run(ctx context.Context, c Config) (Report, error) {
	report := Report{Failed: map[string]int64{}}
	pairs, err := c.pairs()
	if err != nil {
		return report, err
	}
	for _, p := range pairs {
		if err := readable(p.in); err != nil {
			return report, err
		}
	}
	for _, p := range pairs {
		counts, err := c.file(ctx, p)
		report.add(counts)
		if err != nil {
			return report, err
		}
		report.Files++
	}
	report.Complete = true
	return report, nil
}

// readable refuses a file that is one ciphertext and no lines of them, before
// anything is done.
func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fault.Wrap(fault.Usage, err, "--in")
	}
	defer func() { _ = f.Close() }()
	var first [1]byte
	if n, _ := f.Read(first[:]); n == 1 && (first[0] == envelope.StreamVersion || first[0] == envelope.Version) {
		return fault.New(fault.BadRequest, "%s is a stream or a binary ciphertext, not lines; decrypt it and encrypt it again, or leave it out", path)
	}
	return nil
}

// pairs lists the inputs in the order of their names.
func (c *Config) pairs() ([]pair, error) {
	info, err := os.Stat(c.In)
	if err != nil {
		return nil, fault.Wrap(fault.Usage, err, "--in")
	}
	in, err := filepath.EvalSymlinks(c.In) // which a walk does not
	if err != nil {
		return nil, fault.Wrap(fault.Usage, err, "--in")
	}
	if in, err = filepath.Abs(in); err != nil {
		return nil, err
	}
	out, err := filepath.Abs(c.Out)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		if in == out {
			return nil, fault.New(fault.Usage, "--out is the input itself; name another file")
		}
		return []pair{{in, out}}, nil
	}
	if rel, err := filepath.Rel(in, out); err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return nil, fault.New(fault.Usage, "--out is within --in; name a directory outside it")
	}
	var all []pair
	err = filepath.WalkDir(in, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, checkpointSuffix) || strings.HasSuffix(path, failedSuffix) {
			return err
		}
		if !d.Type().IsRegular() {
			return fault.New(fault.Usage, "--in: %s is not a regular file; put the file itself there, or leave it out", path)
		}
		rel, err := filepath.Rel(in, path)
		all = append(all, pair{path, filepath.Join(out, rel)})
		return err
	})
	if err == nil && len(all) == 0 {
		err = fault.New(fault.Usage, "--in: there is no file in %s", c.In)
	}
	return all, err
}

// batchLines and batchBytes bound what is between two checkpoints.
const (
	batchLines = 1000
	batchBytes = 4 << 20
)

// file does what is left of one file.
func (c *Config) file(ctx context.Context, p pair) (counts, error) {
	o, err := openOutput(c, p)
	if err != nil {
		return counts{}, err
	}
	defer o.close()
	if o.state.Done {
		c.progress(o.state.Size)
		return o.state.Counts, nil
	}
	c.progress(o.state.Offset)
	in, err := os.Open(p.in)
	if err != nil {
		return o.state.Counts, fault.Wrap(fault.Usage, err, "--in")
	}
	defer func() { _ = in.Close() }()
	from, err := c.open(in, o.state.Offset, o.state.Line)
	if err != nil {
		return o.state.Counts, err
	}
	for !o.state.Done {
		before := o.state.Offset
		items, end, err := readBatch(from)
		if err == nil {
			err = c.reencrypt(ctx, items)
		}
		if err == nil {
			err = o.commit(items, end)
		}
		if err != nil {
			return o.state.Counts, err
		}
		c.progress(o.state.Offset - before)
	}
	return o.state.Counts, nil
}

func (c *Config) progress(n int64) {
	if c.Progress != nil {
		c.Progress(n)
	}
}

func (c *Config) open(f *os.File, offset, line int64) (source, error) {
	if strings.EqualFold(filepath.Ext(f.Name()), ".csv") {
		return c.openCSV(f, offset, line)
	}
	return c.openJSON(f, offset, line)
}

// readBatch reads the next items, and says whether they are the last.
func readBatch(from source) (items []*item, end bool, err error) {
	for size := 0; len(items) < batchLines && size < batchBytes; {
		next, err := from.next()
		if errors.Is(err, errEnd) {
			return items, true, nil
		}
		if err != nil {
			return nil, false, err
		}
		items = append(items, next)
		size += len(next.raw)
	}
	return items, false, nil
}

// reencrypt has the service seal anew what is to be sealed anew, in place.
func (c *Config) reencrypt(ctx context.Context, items []*item) error {
	var which []*item
	var requests []sdk.ReEncryptRequest
	for _, it := range items {
		if it.outcome == pending {
			c.judge(it)
		}
		if it.outcome != pending {
			continue
		}
		r := sdk.ReEncryptRequest{Ciphertext: it.ciphertext, Context: it.context, To: sdk.Target{Key: c.To}}
		if c.ToContext != nil {
			r.To.Context = &it.toContext
		}
		which, requests = append(which, it), append(requests, r)
	}
	if len(requests) == 0 {
		return ctx.Err()
	}
	results, err := c.Client.ReEncryptBatch(ctx, requests)
	if err != nil {
		return err
	}
	for i, r := range results {
		switch {
		case r.Err == nil:
			which[i].replace(r.Ciphertext)
		case ends(r.Err):
			return r.Err
		default:
			which[i].fail(r.Err)
		}
	}
	return nil
}

// maxCiphertext leaves room in a request for the rest of it.
const maxCiphertext = 7 << 20

// judge decides what becomes of a ciphertext without asking anybody.
func (c *Config) judge(it *item) {
	raw, err := envelope.DecodeText(nil, []byte(it.ciphertext))
	if err != nil {
		it.fail(err)
		return
	}
	h, _, err := envelope.Parse(raw)
	switch {
	case err != nil:
		it.fail(err)
	case h.Index != c.From || c.FromVersion != 0 && h.Version != c.FromVersion:
		it.outcome = skipped
	case len(it.ciphertext) > maxCiphertext:
		it.fail(fault.New(fault.TooLarge, "the ciphertext is larger than %d bytes", maxCiphertext))
	}
}

// ends reports an error that the next line would have too: the job stops there, and
// goes on when it was dealt with.
func ends(err error) bool {
	switch code := fault.CodeOf(err); code {
	case fault.Unauthorized, fault.Forbidden, fault.IPNotAllowed, fault.KeyNotFound, fault.WrongRegion:
		return true
	default:
		return code.Retryable()
	}
}

// counts is what was done with lines.
type counts struct {
	Lines       int64            `json:"lines"`
	Reencrypted int64            `json:"reencrypted"`
	Skipped     int64            `json:"skipped"`
	Without     int64            `json:"without"`
	Failed      map[string]int64 `json:"failed"`
}

func (c counts) clone() counts {
	c.Failed = maps.Clone(c.Failed)
	if c.Failed == nil {
		c.Failed = map[string]int64{}
	}
	return c
}

func (c *counts) count(it *item) {
	if it.outcome == noLine {
		return
	}
	c.Lines++
	switch it.outcome {
	case done:
		c.Reencrypted++
	case skipped:
		c.Skipped++
	case failed:
		c.Failed[string(fault.CodeOf(it.err))]++
	default:
		c.Without++
	}
}
