package audit

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/trikey/trikey/internal/fault"
)

// VerifyOptions is what Verify trusts, and what it compares with.
type VerifyOptions struct {
	// Fingerprints are of the keys that checkpoints may be signed with, as trikey machine
	// status shows them. Without any, the log's own file of keys is believed.
	Fingerprints []string
	// Keys are verifier keys (c2sp.org/signed-note), one a line, instead of the log's own.
	Keys string
	// Since is checkpoints that were kept elsewhere: a signed note, or lines as a file
	// sink writes them. The log must contain all that they sign.
	Since []byte
	// Receipt must be of an event of the log.
	Receipt []byte
	// Each is told every event that is in its place.
	Each func(Event)
	// From accepts that the events before this number are kept elsewhere.
	From int64
}

// Result is what Verify found to be true.
type Result struct {
	Origin       string   `json:"origin"`
	Fingerprints []string `json:"fingerprints"` // of the keys
	Trusted      bool     `json:"trusted"`      // the caller named the keys
	From         int64    `json:"from,omitzero"`
	Events       int64    `json:"events"`      // in the log
	Signed       int64    `json:"signed"`      // of these, covered by the newest checkpoint
	Checkpoints  int      `json:"checkpoints"` // compared
	Torn         int      `json:"torn_bytes,omitzero"`
	Receipt      *Event   `json:"receipt,omitempty"` // what the receipt is of
}

// Verify reads a whole log, a directory or what Export wrote, and recomputes every hash
// and every checkpoint. Its error is fault.AuditAltered, and names the first event that
// was edited, deleted, reordered or truncated, or says that the log was forked.
func Verify(path string, o VerifyOptions) (Result, error) {
	s, err := openSource(path, o)
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = s.close() }() // only read
	if err := s.trust(o.Fingerprints); err != nil {
		return Result{}, err
	}
	v := &verifier{source: s, tree: *s.start, each: o.Each}
	if err := v.gatherMarks(o); err != nil {
		return Result{}, err
	}
	torn, err := s.lines(v.line)
	if err == nil {
		err = v.finish()
	}
	r := Result{
		Origin: s.keys.origin, Trusted: len(o.Fingerprints) > 0 || o.Keys != "", From: s.start.size, Events: v.size, Signed: s.newest.Size,
		Checkpoints: v.compared, Torn: torn, Receipt: v.receipt,
	}
	for _, p := range s.keys.public {
		r.Fingerprints = append(r.Fingerprints, Fingerprint(p))
	}
	return r, err
}

// CheckReceipt proves a receipt by itself, with verifier keys.
func CheckReceipt(raw []byte, o VerifyOptions) (Result, error) {
	k, err := parseKeys(o.Keys)
	if err != nil {
		return Result{}, err
	}
	s := &source{keys: k}
	if err := s.trust(o.Fingerprints); err != nil {
		return Result{}, err
	}
	receipt, err := ParseReceipt(raw)
	if err != nil {
		return Result{}, err
	}
	e, c, err := receipt.check(k.list())
	return Result{Origin: c.Origin, Fingerprints: []string{Fingerprint(k.public[0])}, Trusted: true, Signed: c.Size, Receipt: &e, Checkpoints: 1}, err
}

// trust leaves only keys of these fingerprints.
func (s *source) trust(fingerprints []string) error {
	if len(fingerprints) == 0 {
		return nil
	}
	trusted := &keyring{origin: s.keys.origin}
	for i, p := range s.keys.public {
		if slices.ContainsFunc(fingerprints, func(f string) bool { return strings.EqualFold(f, Fingerprint(p)) }) {
			trusted.public = append(trusted.public, p)
			trusted.verifiers = append(trusted.verifiers, s.keys.verifiers[i])
		}
	}
	if len(trusted.public) == 0 {
		return altered("none of the log's keys has the fingerprint that was given: it is another machine's log, or a forged one")
	}
	s.keys = trusted
	return nil
}

// mark is a checkpoint that the log must agree with.
type mark struct {
	Checkpoint
	from string // where it was kept
	own  bool   // by the log itself
}

// verifier goes through a log.
type verifier struct {
	*source
	tree
	marks    []mark // by size; those behind are taken off
	good     int64  // the size up to which a checkpoint has agreed
	compared int
	receipt  *Event
	path     *Receipt
	each     func(Event)

	lost  int64 // the number of the event that is not in its place; with missing
	found int64 // the one in its place
	state string
}

func (v *verifier) gatherMarks(o VerifyOptions) error {
	known := v.keys.list()
	for i, raw := range v.checkpoints {
		c, err := openCheckpoint(raw, known)
		if err == errUntrusted && i < len(v.checkpoints)-1 { //nolint:errorlint // a fault equals any of its code
			continue // of a key before; the newest stands for all of it
		}
		if err != nil {
			return fmt.Errorf("checkpoint %d: %w", i, err)
		}
		if c.Origin != v.keys.origin {
			return altered("a checkpoint is of the log %s, not of %s", c.Origin, v.keys.origin)
		}
		v.marks = append(v.marks, mark{c, checkpointsFile, true})
		if c.Size >= v.newest.Size {
			v.newest = c
		}
	}
	since, err := splitCheckpoints(o.Since)
	if err != nil {
		return err
	}
	for _, raw := range since {
		c, err := openCheckpoint(raw, known)
		if err != nil {
			return fmt.Errorf("the checkpoint that was kept elsewhere: %w", err)
		}
		if c.Origin != v.keys.origin {
			return altered("the checkpoint that was kept elsewhere is of another log (%s): this one was forked or begun anew", c.Origin)
		}
		v.marks = append(v.marks, mark{c, "the checkpoint that was kept elsewhere", false})
	}
	if o.Receipt != nil {
		r, err := ParseReceipt(o.Receipt)
		if err != nil {
			return err
		}
		e, c, err := r.check(known)
		if err != nil {
			return err
		}
		v.path, v.receipt = r, &e
		v.marks = append(v.marks, mark{c, "the receipt", false})
	}
	slices.SortStableFunc(v.marks, func(a, b mark) int { return cmp.Compare(a.Size, b.Size) })
	for len(v.marks) > 0 && v.marks[0].Size < v.size {
		v.marks = v.marks[1:] // of events that are kept elsewhere
	}
	return v.compare()
}

// splitCheckpoints reads signed notes: one, or lines of JSON.
func splitCheckpoints(raw []byte) ([][]byte, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	if raw[0] != '{' {
		return [][]byte{raw}, nil
	}
	var out [][]byte
	for line := range strings.Lines(string(raw)) {
		if !strings.HasSuffix(line, "\n") {
			break // being written
		}
		var k kept
		if err := json.Unmarshal([]byte(line), &k); err != nil {
			return nil, altered("a line of the checkpoints is not one: %v", err)
		}
		out = append(out, []byte(k.Checkpoint))
	}
	return out, nil
}

var errStop = errors.New("enough was read")

// line takes the next event.
func (v *verifier) line(line []byte) error {
	e, err := parseLine(line)
	if v.state != "" { // something is wrong already: look where the missing event went
		if err == nil && e.Number == v.lost {
			v.state = "reordered"
			return errStop
		}
		return nil
	}
	n := v.size
	hash := tlog.RecordHash(line)
	stored, known := v.storedLeaf(n)
	switch {
	case err != nil:
		return altered("event %d was edited: it is not an event any more", n)
	case e.Number != n:
		v.lost, v.found, v.state = n, e.Number, "deleted"
		if e.Number < n {
			v.state = "displaced"
		}
		return nil
	case known && stored != hash:
		return altered("event %d was edited", n)
	case v.path != nil && v.path.Index == n && tlog.RecordHash(v.path.Line) != hash:
		return altered("event %d is not the one that the receipt is of: it was edited, or the log was forked", n)
	}
	if v.each != nil {
		v.each(e)
	}
	if _, err := v.add(hash); err != nil {
		return err
	}
	return v.compare()
}

// compare compares the tree with the checkpoints of its size.
func (v *verifier) compare() error {
	root := v.root()
	for len(v.marks) > 0 && v.marks[0].Size == v.size {
		m := v.marks[0]
		v.marks = v.marks[1:]
		switch {
		case m.Root == root:
			v.compared++
			v.good = v.size
		case m.own:
			return altered("one of the events %d to %d was edited, with its hash: %s signs others", v.good, v.size-1, m.from)
		default:
			return altered("the log was forked: %s signs other events than these, somewhere in %d to %d", m.from, v.good, v.size-1)
		}
	}
	return nil
}

// finish says what is missing at the end.
func (v *verifier) finish() error {
	switch v.state {
	case "deleted":
		return altered("event %d was deleted: event %d stands in its place", v.lost, v.found)
	case "displaced":
		return altered("event %d was reordered or repeated: it stands in the place of event %d", v.found, v.lost)
	case "reordered":
		return altered("events were reordered: event %d stands in the place of event %d", v.found, v.lost)
	}
	if len(v.marks) == 0 {
		return nil
	}
	m := v.marks[len(v.marks)-1]
	if m.own {
		return altered("the log was truncated: events %d to %d are missing, which %s signs", v.size, m.Size-1, m.from)
	}
	return altered("the log was truncated or forked: events %d to %d are missing, which %s signs", v.size, m.Size-1, m.from)
}

// storedLeaf returns the hash of an event as it was stored.
func (v *verifier) storedLeaf(n int64) (hash tlog.Hash, known bool) {
	if v.hashes == nil {
		return hash, false
	}
	got, err := storedHashes{v.hashes}.ReadHashes([]int64{tlog.StoredHashIndex(0, n)})
	if err != nil {
		return hash, false
	}
	return got[0], true
}

// readKeys returns the keys that a caller gave, or those of a file.
func readKeys(given, path string) (*keyring, error) {
	if given == "" {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, altered("its public keys are missing (%v); give them with --key", err)
		}
		given = string(raw)
	}
	return parseKeys(given)
}

func missing(path string, err error) error {
	return fault.Wrap(fault.NotFound, err, "there is no audit log at %s", path)
}
