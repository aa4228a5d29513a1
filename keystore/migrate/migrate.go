// Package migrate copies a key store into another one, of whatever kind, while neither is
// in use.
//
// One entry, the last, makes the copy a store that can be served; until everything else
// was compared byte for byte it is not there. A marker in the target says which copy is
// under way, so that one that was cut short can be run again, and nothing else is
// written over.
package migrate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

// Marker is the name of the entry that a target has while it is being filled.
const Marker = "migration"

// page is how many entries are read at a time.
const page = 500

// Config is what Run needs.
type Config struct {
	From, To keystore.Store

	// Last is the entry that is copied last, in one transaction with the end of the
	// marker.
	Last string

	// Progress is told how many entries are done, of how many. Entries count twice:
	// copied, and compared.
	Progress func(done, total int)
}

// Report says what was done.
type Report struct {
	Entries int   `json:"entries"` // in the target now, each compared with the source's
	Bytes   int64 `json:"bytes"`   // of their values
	Copied  int   `json:"copied"`  // by this run; the others were there from one before
}

// run is one copy.
type run struct {
	Config
	last   keystore.Entry // of the source
	marker keystore.Entry // of the target
	total  int            // entries of the source
	done   int
	report Report
}

// Run copies. What it returns an error of can be run again, and goes on where it was.
func Run(ctx context.Context, cfg Config) (Report, error) {
	r := &run{Config: cfg}
	for _, step := range []func(context.Context) error{r.readSource, r.claimTarget, r.copy, r.compare, r.finish} {
		if err := step(ctx); err != nil {
			return r.report, err
		}
	}
	return r.report, nil
}

// each calls f with every entry of a store, but for the marker, page by page.
func each(ctx context.Context, s keystore.Store, f func([]keystore.Entry) error) error {
	for after := ""; ; {
		entries, _, err := s.List(ctx, "", after, page)
		if err != nil {
			return err
		}
		n := len(entries)
		if n > 0 {
			after = entries[n-1].Name
		}
		kept := entries[:0]
		for _, e := range entries {
			if e.Name != Marker {
				kept = append(kept, e)
			}
		}
		if err := f(kept); err != nil || n < page {
			return err
		}
	}
}

func (r *run) readSource(ctx context.Context) (err error) {
	if _, err := r.From.Get(ctx, Marker); !errors.Is(err, keystore.ErrNotFound) {
		if err == nil {
			err = fault.New(fault.Conflict, "the source is itself a copy that was cut short: finish that one first, or copy from where it came from")
		}
		return err
	}
	r.last, err = r.From.Get(ctx, r.Last)
	if errors.Is(err, keystore.ErrNotFound) {
		return fault.New(fault.NotFound, "the source is no Trikey key store, or an empty one: it has no entry %q", r.Last)
	}
	if err != nil {
		return err
	}
	return each(ctx, r.From, func(entries []keystore.Entry) error { r.total += len(entries); return nil })
}

// claimTarget writes the marker into an empty target, or finds that of the same copy.
func (r *run) claimTarget(ctx context.Context) (err error) {
	source := sha256.Sum256(r.last.Value)
	r.marker, err = r.To.Get(ctx, Marker)
	switch {
	case err == nil && bytes.Equal(r.marker.Value, source[:]):
		return nil
	case err == nil:
		return fault.New(fault.Conflict, "the target holds part of a copy of another store; give another target, or empty it")
	case !errors.Is(err, keystore.ErrNotFound):
		return err
	}
	there, _, err := r.To.List(ctx, "", "", 1)
	if err != nil {
		return err
	}
	if len(there) > 0 {
		return fault.New(fault.Conflict, "the target is not empty: it has %q; give another path or prefix, nothing is written over", there[0].Name)
	}
	r.marker = keystore.Entry{Name: Marker, Value: source[:]}
	r.marker.Revision, err = r.To.Txn(ctx, []keystore.Compare{{Name: Marker}, {Name: r.Last}}, []keystore.Write{{Name: Marker, Value: source[:]}})
	if errors.Is(err, keystore.ErrConflict) {
		return fault.New(fault.Conflict, "another copy into the target has begun at the same moment")
	}
	return err
}

// copy writes what the target has not, and removes what the source has not.
func (r *run) copy(ctx context.Context) error {
	there := map[string][sha256.Size]byte{}
	err := each(ctx, r.To, func(entries []keystore.Entry) error {
		for _, e := range entries {
			there[e.Name] = sha256.Sum256(e.Value)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = each(ctx, r.From, func(entries []keystore.Entry) error {
		var writes []keystore.Write
		for _, e := range entries {
			sum, has := there[e.Name]
			delete(there, e.Name)
			if e.Name != r.Last && (!has || sum != sha256.Sum256(e.Value)) {
				writes = append(writes, keystore.Write{Name: e.Name, Value: e.Value})
			}
		}
		r.report.Copied += len(writes)
		return errors.Join(r.write(ctx, writes), r.progress(len(entries)))
	})
	if err != nil {
		return err
	}
	var gone []keystore.Write
	for name := range there {
		gone = append(gone, keystore.Write{Name: name, Delete: true})
	}
	return r.write(ctx, gone)
}

// write writes, as long as the copy under way is this one.
func (r *run) write(ctx context.Context, writes []keystore.Write) error {
	for batch := range keystore.Batches(writes) {
		_, err := r.To.Txn(ctx, []keystore.Compare{{Name: Marker, Revision: r.marker.Revision}, {Name: r.Last}}, batch)
		if errors.Is(err, keystore.ErrConflict) {
			return fault.New(fault.Conflict, "somebody else has written to the target; see that only one copy runs, and run it again")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) progress(n int) error {
	r.done += n
	if r.Progress != nil {
		r.Progress(r.done, 2*r.total)
	}
	return nil
}

var errChanged = fault.New(fault.Conflict, "the source has changed while it was copied: end every process that uses it, and run the copy again")

// compare reads both stores from the beginning and compares names and values.
func (r *run) compare(ctx context.Context) error {
	var copied []keystore.Entry // read ahead of the target
	after := ""
	next := func() (keystore.Entry, error) {
		for len(copied) == 0 {
			var err error
			copied, _, err = r.To.List(ctx, "", after, page)
			if err != nil || len(copied) == 0 {
				return keystore.Entry{}, err
			}
			after = copied[len(copied)-1].Name
			if i := indexOf(copied, Marker); i >= 0 {
				copied = append(copied[:i], copied[i+1:]...)
			}
		}
		e := copied[0]
		copied = copied[1:]
		return e, nil
	}
	err := each(ctx, r.From, func(entries []keystore.Entry) error {
		for _, e := range entries {
			r.report.Entries++
			r.report.Bytes += int64(len(e.Value))
			if e.Name == r.Last {
				continue
			}
			c, err := next()
			if err != nil {
				return err
			}
			if c.Name != e.Name || !bytes.Equal(c.Value, e.Value) {
				return errChanged
			}
		}
		return r.progress(len(entries))
	})
	if err != nil {
		return err
	}
	if more, err := next(); err != nil || more.Name != "" {
		return errors.Join(err, errChanged)
	}
	if r.report.Entries != r.total {
		return errChanged
	}
	return nil
}

func indexOf(entries []keystore.Entry, name string) int {
	for i, e := range entries {
		if e.Name == name {
			return i
		}
	}
	return -1
}

// finish makes a store of the copy.
func (r *run) finish(ctx context.Context) error {
	now, err := r.From.Get(ctx, r.Last)
	if err != nil {
		return err
	}
	if now.Revision != r.last.Revision || !bytes.Equal(now.Value, r.last.Value) {
		return errChanged
	}
	_, err = r.To.Txn(ctx, []keystore.Compare{{Name: Marker, Revision: r.marker.Revision}, {Name: r.Last}},
		[]keystore.Write{{Name: r.Last, Value: r.last.Value}, {Name: Marker, Delete: true}})
	if errors.Is(err, keystore.ErrConflict) {
		return fault.New(fault.Conflict, "somebody else has written to the target; see that only one copy runs, and run it again")
	}
	r.report.Copied++
	return err
}
