package record

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

// A sealed record is bound to its name and its own number, but an older state of it, put
// back as it was, is bound to those as well. So each change also writes down, in the same
// transaction, which number the record has now: in one of some sealed lists, chosen by
// the name, whose own numbers are in one sealed summary. To put back a record unseen,
// its list and the summary must be put back too, and with them every record that has
// changed since: the whole store. That is what a restored backup is; the summary's own
// number, which the service tells its audit log at each start, shows it.

const (
	revisionsPrefix = "revisions/"
	summaryRecord   = revisionsPrefix + "summary"

	// lists is how many lists there are: each change rewrites one of them.
	lists = 256
)

func listRecord(i int) string { return fmt.Sprintf("%s%03d", revisionsPrefix, i) }

// countsPrefix begins records that have no number in the index: counts of operations, of
// which many change each minute. One that is put back delays a rotation by count.
const countsPrefix = "key-use/"

// listOf is the list that a record's number is in.
func listOf(name string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	return int(h.Sum32() % lists)
}

// summary has the numbers of the lists, 0 for those that are not there.
type summary struct {
	Lists [lists]uint64 `json:"lists"`
}

// list has the numbers of records.
type list struct {
	Records map[string]uint64 `json:"records"`
}

// read reads a record of the index into a value; one that is not there is the zero
// record.
func (k *Keeper) read(ctx context.Context, r root, name string, into any) (Record, error) {
	e, err := k.Store.Get(ctx, r.entry(name))
	if errors.Is(err, keystore.ErrNotFound) {
		return Record{Name: name}, nil
	}
	if err != nil {
		return Record{}, err
	}
	opened, err := k.open(ctx, r, []keystore.Entry{e})
	if err != nil {
		return Record{}, err
	}
	return opened[0], opened[0].Decode(into)
}

// errMoving: another node changed the index while it was read.
var errMoving = errors.New("record: the index of revisions changed meanwhile")

// withRevisions adds to changes those of the index.
func (k *Keeper) withRevisions(ctx context.Context, r root, changes []Change) ([]Change, error) {
	for {
		all, err := k.tryRevisions(ctx, r, changes)
		if !errors.Is(err, errMoving) {
			return all, err
		}
	}
}

func (k *Keeper) tryRevisions(ctx context.Context, r root, changes []Change) ([]Change, error) {
	var all summary
	top, err := k.read(ctx, r, summaryRecord, &all)
	if err != nil {
		return nil, err
	}
	touched := map[int][]Change{}
	for _, c := range changes {
		if strings.HasPrefix(c.Name, countsPrefix) {
			continue
		}
		touched[listOf(c.Name)] = append(touched[listOf(c.Name)], c)
	}
	out := slices.Clone(changes)
	for i, changes := range touched {
		l := list{Records: map[string]uint64{}}
		stored, err := k.read(ctx, r, listRecord(i), &l)
		if err != nil {
			return nil, err
		}
		if stored.number != all.Lists[i] {
			now, err := k.Store.Get(ctx, r.entry(summaryRecord))
			if err == nil && now.Revision != top.Entry {
				err = errMoving
			}
			if err != nil && !errors.Is(err, keystore.ErrNotFound) {
				return nil, err
			}
			return nil, rolledBack(stored.Name, stored.number, all.Lists[i])
		}
		for _, c := range changes {
			if c.Delete {
				delete(l.Records, c.Name)
			} else {
				l.Records[c.Name] = c.number + 1
			}
		}
		content, err := JSON(l)
		if err != nil {
			return nil, err
		}
		all.Lists[i] = stored.number + 1
		out = append(out, Replace(stored, content))
	}
	if len(touched) == 0 {
		return out, nil
	}
	content, err := JSON(all)
	return append(out, Replace(top, content)), err
}

// unchanged reports whether the records of changes are still as they were read: then a
// transaction that failed did so because of the index, which others change too.
func (k *Keeper) unchanged(ctx context.Context, r root, changes []Change) (bool, error) {
	for _, c := range changes {
		e, err := k.Store.Get(ctx, r.entry(c.Name))
		if err != nil && !errors.Is(err, keystore.ErrNotFound) {
			return false, err
		}
		if e.Revision != c.Entry {
			return false, nil
		}
	}
	return true, nil
}

// Changes is how many changes the records have seen: never less than it was, but where
// the whole store was put back.
func (k *Keeper) Changes(ctx context.Context) (uint64, error) {
	top, err := k.read(ctx, k.current.get(), summaryRecord, &summary{})
	return top.number, err
}

// Verify compares every record's number with the index, and names the first that was
// put back, put there, or taken away by somebody else. That a record is of its number
// is proved when it is opened.
func (k *Keeper) Verify(ctx context.Context) error {
	for {
		r := k.current.get()
		before, err := k.Store.Get(ctx, r.entry(summaryRecord))
		if err != nil && !errors.Is(err, keystore.ErrNotFound) {
			return err
		}
		found := k.verify(ctx, r)
		if found == nil {
			return nil
		}
		// Another node may have changed something meanwhile: then look again.
		after, err := k.Store.Get(ctx, r.entry(summaryRecord))
		if err != nil && !errors.Is(err, keystore.ErrNotFound) {
			return err
		}
		if after.Revision == before.Revision && !k.moved(r) {
			return found
		}
	}
}

func (k *Keeper) verify(ctx context.Context, r root) error {
	var all summary
	if _, err := k.read(ctx, r, summaryRecord, &all); err != nil {
		return err
	}
	known := map[string]uint64{}
	for i, number := range all.Lists {
		var l list
		stored, err := k.read(ctx, r, listRecord(i), &l)
		if err != nil {
			return err
		}
		if stored.number != number {
			return rolledBack(stored.Name, stored.number, number)
		}
		if number > 0 {
			known[stored.Name] = number
		}
		for name, number := range l.Records {
			known[name] = number
		}
	}
	_, err := k.pages(ctx, space(r.Generation), func(entries []keystore.Entry) error {
		for _, e := range entries {
			name, _ := r.name(e.Name)
			if name == summaryRecord || strings.HasPrefix(name, countsPrefix) {
				continue
			}
			if len(e.Value) < head {
				return fault.New(fault.RecordDamaged, "record %s: not a sealed record; restore the key store from a backup", name)
			}
			newest, ok := known[name]
			delete(known, name)
			if number := binary.BigEndian.Uint64(e.Value); !ok || number != newest {
				return rolledBack(name, number, newest)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	gone := make([]string, 0, len(known))
	for name := range known {
		gone = append(gone, name)
	}
	if len(gone) > 0 {
		slices.Sort(gone)
		return fault.New(fault.RecordDamaged, "record %s: missing; it was taken out of the key store by somebody else: restore the store from a backup", gone[0])
	}
	return nil
}

func rolledBack(name string, number, newest uint64) error {
	if newest == 0 {
		return fault.New(fault.RecordDamaged, "record %s: the service did not write it, or has deleted it: somebody else put it into the key store; "+
			"restore the store from a backup", name)
	}
	return fault.New(fault.RecordDamaged, "record %s: it is change %d of the record, but change %d was made: an older state was put back by somebody else; "+
		"restore the store from a backup", name, number, newest)
}
