package record

import (
	"context"
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
// transaction, which number the record has now. The numbers are in a tree of sealed
// records: 65,536 lists, chosen by the name, have those of all others; 256 nodes have
// those of 256 lists each; one summary has those of the nodes. To put back a record
// unseen, its list, its node and the summary must be put back too, and with them every
// record that has changed since: the whole store. That is what a restored backup is; the
// summary's own number, which the service tells its audit log at each start, shows it.
//
// A change rewrites one record of each level, some kilobytes together, also where there
// are millions: a list has about as many numbers as there are records in 65,536. Lists and
// nodes are made when they are first needed.

const (
	revisionsPrefix = "revisions/"
	summaryRecord   = revisionsPrefix + "summary"

	// fanout is how many nodes the summary has, and lists a node.
	fanout = 256
	lists  = fanout * fanout
)

func nodeRecord(node int) string { return fmt.Sprintf("%s%02x", revisionsPrefix, node) }

func listRecord(list int) string {
	return fmt.Sprintf("%s%02x/%02x", revisionsPrefix, list/fanout, list%fanout)
}

// countsPrefix begins records that have no number in the index: counts of operations, of
// which many change each minute. One that is put back delays a rotation by count.
const countsPrefix = "key-use/"

// listOf is the list that a record's number is in. Names that differ in the last byte
// alone share one, so that keys which are made together with neighbouring indexes touch
// few lists.
func listOf(name string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name[:max(0, len(name)-1)])) // never fails
	sum := h.Sum32()
	return int((sum>>16 ^ sum) % lists) // folded: the lower bits alone mix less
}

// numbers are those of a summary's nodes or of a node's lists, 0 for what is not there.
type numbers struct {
	Of [fanout]uint64 `json:"numbers"`
}

// list has the numbers of records.
type list struct {
	Records map[string]uint64 `json:"records"`
}

// readAll reads records of the index; one that is not there is the zero record.
func (k *Keeper) readAll(ctx context.Context, r root, names []string) ([]Record, error) {
	records := make([]Record, len(names))
	var entries []keystore.Entry
	var at []int
	for i, name := range names {
		e, err := k.Store.Get(ctx, r.entry(name))
		if errors.Is(err, keystore.ErrNotFound) {
			records[i] = Record{Name: name}
			continue
		}
		if err != nil {
			return nil, err
		}
		entries, at = append(entries, e), append(at, i)
	}
	opened, err := k.open(ctx, r, entries)
	if err != nil {
		return nil, err
	}
	for i, o := range opened {
		records[at[i]] = o
	}
	return records, nil
}

// decode decodes a record of the index, into the zero value where it is not there.
func (r Record) decode(into any) error {
	if r.number == 0 {
		return nil
	}
	return r.Decode(into)
}

// readTop reads the summary.
func (k *Keeper) readTop(ctx context.Context, r root) (top Record, nodes numbers, err error) {
	read, err := k.readAll(ctx, r, []string{summaryRecord})
	if err != nil {
		return top, nodes, err
	}
	return read[0], nodes, read[0].decode(&nodes)
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

// branch is the part of the index that some changes touch.
type branch struct {
	top     Record
	summary numbers
	nodes   map[int]*branchNode
}

type branchNode struct {
	stored Record
	numbers
	lists map[int]*branchList
}

type branchList struct {
	stored Record
	list
}

// branchOf returns the branch of some lists, still empty.
func branchOf(all []int) *branch {
	nodes := map[int]*branchNode{}
	for _, at := range all {
		n := nodes[at/fanout]
		if n == nil {
			n = &branchNode{lists: map[int]*branchList{}}
			nodes[at/fanout] = n
		}
		if n.lists[at] == nil {
			n.lists[at] = &branchList{list: list{Records: map[string]uint64{}}}
		}
	}
	return &branch{nodes: nodes}
}

// readBranch reads the part of the index that some lists are in, and sees that it goes
// together. Where it does not because somebody has just changed it, that is errMoving.
func (k *Keeper) readBranch(ctx context.Context, r root, all []int) (*branch, error) {
	b := branchOf(all)
	read := []string{summaryRecord}
	for at, n := range b.nodes {
		read = append(read, nodeRecord(at))
		for l := range n.lists {
			read = append(read, listRecord(l))
		}
	}
	records, err := k.readAll(ctx, r, read)
	if err != nil {
		return nil, err
	}
	byName := make(map[string]Record, len(records))
	for _, record := range records {
		byName[record.Name] = record
	}
	b.top = byName[summaryRecord]
	err = b.top.decode(&b.summary)
	for at, n := range b.nodes {
		n.stored = byName[nodeRecord(at)]
		err = errors.Join(err, n.stored.decode(&n.numbers))
		for l, into := range n.lists {
			into.stored = byName[listRecord(l)]
			err = errors.Join(err, into.stored.decode(&into.list))
		}
	}
	if err == nil {
		err = b.check()
	}
	if err == nil {
		return b, nil
	}
	now, getErr := k.Store.Get(ctx, r.entry(summaryRecord))
	switch {
	case getErr != nil && !errors.Is(getErr, keystore.ErrNotFound):
		return nil, getErr
	case now.Revision != b.top.Entry:
		return nil, errMoving
	}
	return nil, err
}

// check reports a node or a list that is not the one its parent knows.
func (b *branch) check() error {
	for at, n := range b.nodes {
		if n.stored.number != b.summary.Of[at] {
			return rolledBack(n.stored.Name, n.stored.number, b.summary.Of[at])
		}
		for l, read := range n.lists {
			if want := n.Of[l%fanout]; read.stored.number != want {
				return rolledBack(read.stored.Name, read.stored.number, want)
			}
		}
	}
	return nil
}

func (k *Keeper) tryRevisions(ctx context.Context, r root, changes []Change) ([]Change, error) {
	var touched []int
	for _, c := range changes {
		if !strings.HasPrefix(c.Name, countsPrefix) {
			touched = append(touched, listOf(c.Name))
		}
	}
	if len(touched) == 0 {
		return changes, nil
	}
	b, err := k.readBranch(ctx, r, touched)
	if err != nil {
		return nil, err
	}
	for _, c := range changes {
		if strings.HasPrefix(c.Name, countsPrefix) {
			continue
		}
		at := listOf(c.Name)
		into := b.nodes[at/fanout].lists[at].Records
		if into[c.Name] != c.number {
			return nil, k.unlike(ctx, r, b, c, into[c.Name])
		}
		if c.Delete {
			delete(into, c.Name)
		} else {
			into[c.Name] = c.number + 1
		}
	}
	return b.appendChanges(slices.Clip(changes))
}

// unlike says why a record that is to be changed has not the number that the index knows:
// somebody was faster, or it was put back, put there or taken out. Whoever made a new
// record in the place of one that was taken out would hide that.
func (k *Keeper) unlike(ctx context.Context, r root, b *branch, c Change, known uint64) error {
	same, err := k.unchanged(ctx, r, []Change{c})
	if err != nil {
		return err
	}
	if !same {
		return keystore.ErrConflict
	}
	top, err := k.Store.Get(ctx, r.entry(summaryRecord))
	if err != nil && !errors.Is(err, keystore.ErrNotFound) {
		return err
	}
	if top.Revision != b.top.Entry {
		return errMoving
	}
	return rolledBack(c.Name, c.number, known)
}

// appendChanges appends what rewrites the branch.
func (b *branch) appendChanges(out []Change) ([]Change, error) {
	replace := func(r Record, content any) error {
		raw, err := JSON(content)
		out = append(out, Replace(r, raw))
		return err
	}
	for at, n := range b.nodes {
		for l, changed := range n.lists {
			n.Of[l%fanout] = changed.stored.number + 1
			if err := replace(changed.stored, changed.list); err != nil {
				return nil, err
			}
		}
		b.summary.Of[at] = n.stored.number + 1
		if err := replace(n.stored, n.numbers); err != nil {
			return nil, err
		}
	}
	return out, replace(b.top, b.summary)
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
	top, _, err := k.readTop(ctx, k.current.get())
	return top.number, err
}

func rolledBack(name string, number, newest uint64) error {
	switch {
	case newest == 0:
		return fault.New(fault.RecordDamaged, "record %s: the service did not write it, or has deleted it: somebody else put it into the key store; "+
			"restore the store from a backup", name)
	case number == 0:
		return fault.New(fault.RecordDamaged, "record %s: missing; it was taken out of the key store by somebody else: restore the store from a backup", name)
	}
	return fault.New(fault.RecordDamaged, "record %s: it is change %d of the record, but change %d was made: an older state was put back by somebody else; "+
		"restore the store from a backup", name, number, newest)
}
