package record

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"strings"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

// Verify compares every record's number with the index, and names the first that was
// put back, put there, or taken away by somebody else. That a record is of its number
// is proved when it is opened.
//
// It reads everything once, while others may go on changing it. What did not fit then is
// looked at once more, list by list, between two moments at which nothing was changed.
func (k *Keeper) Verify(ctx context.Context) error {
	for {
		r := k.current.get()
		suspects, err := k.compare(ctx, r)
		if err == nil && len(suspects) > 0 {
			err = k.inspect(ctx, r, suspects)
		}
		if err == nil || !k.moved(r) {
			return err
		}
	}
}

// comparison compares what the index says with what is stored, without keeping either: of
// each list, it keeps the sum of what both were seen to have. Whatever is in both cancels
// out. The digests are keyed at random for each comparison, so that nobody can make
// records that cancel each other out (an XOR multiset hash over a pseudorandom function).
type comparison struct {
	key    [32]byte
	sums   [lists][2]uint64
	buffer []byte
}

func (c *comparison) add(in int, name string, number uint64) {
	c.buffer = append(append(c.buffer[:0], c.key[:]...), name...)
	digest := sha256.Sum256(binary.BigEndian.AppendUint64(c.buffer, number))
	c.sums[in][0] ^= binary.BigEndian.Uint64(digest[:])
	c.sums[in][1] ^= binary.BigEndian.Uint64(digest[8:])
}

// addNumbers adds what a node says of its lists, or the summary of the nodes. A list is
// compared among its own numbers; a node among those of its first list.
func (c *comparison) addNumbers(of numbers, first, step int, name func(int) string) {
	for i, number := range of.Of {
		if number != 0 {
			c.add((first+i)*step, name(first+i), number)
		}
	}
}

// indexed is where a record of the index is compared; false for the summary, and for what
// is not of the index.
func indexed(name string) (in int, ok bool) {
	rest, ok := strings.CutPrefix(name, revisionsPrefix)
	if !ok || name == summaryRecord {
		return 0, false
	}
	digits := strings.ReplaceAll(rest, "/", "")
	for _, d := range []byte(digits) {
		at := strings.IndexByte("0123456789abcdef", d)
		if at < 0 {
			return 0, false
		}
		in = in*16 + at
	}
	switch {
	case len(digits) == 2 && name == nodeRecord(in):
		return in * fanout, true
	case len(digits) == 4 && name == listRecord(in):
		return in, true
	}
	return 0, false
}

// compare reads everything, and returns the lists that do not fit.
func (k *Keeper) compare(ctx context.Context, r root) (suspects map[int]bool, err error) {
	c := &comparison{}
	_, _ = rand.Read(c.key[:]) // never fails
	_, summary, err := k.readTop(ctx, r)
	if err != nil {
		return nil, err
	}
	c.addNumbers(summary, 0, fanout, nodeRecord)
	if _, err := k.pages(ctx, r.entry(revisionsPrefix), func(entries []keystore.Entry) error {
		records, err := k.open(ctx, r, entries)
		if err != nil {
			return err
		}
		for _, record := range records {
			if err := c.addRecord(record); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if err := k.heads(ctx, r, func(name string, number uint64) {
		in, ok := indexed(name)
		if !ok {
			in = listOf(name)
		}
		c.add(in, name, number)
	}); err != nil {
		return nil, err
	}
	suspects = map[int]bool{}
	for in, sum := range c.sums {
		if sum != ([2]uint64{}) {
			suspects[in] = true
		}
	}
	return suspects, nil
}

// addRecord adds what a record of the index says.
func (c *comparison) addRecord(r Record) error {
	in, ok := indexed(r.Name)
	switch {
	case r.Name == summaryRecord:
		return nil
	case !ok:
		return rolledBack(r.Name, r.number, 0)
	case r.Name == nodeRecord(in/fanout):
		var of numbers
		err := r.Decode(&of)
		c.addNumbers(of, in, 1, listRecord)
		return err
	}
	var l list
	err := r.Decode(&l)
	for name, number := range l.Records {
		c.add(in, name, number)
	}
	return err
}

// heads calls f with the name and the number of every stored record that the index has.
func (k *Keeper) heads(ctx context.Context, r root, f func(name string, number uint64)) error {
	_, err := k.pages(ctx, space(r.Generation), func(entries []keystore.Entry) error {
		for _, e := range entries {
			name, _ := r.name(e.Name)
			if name == summaryRecord || strings.HasPrefix(name, countsPrefix) {
				continue
			}
			if len(e.Value) < head {
				return fault.New(fault.RecordDamaged, "record %s: not a sealed record; restore the key store from a backup", name)
			}
			f(name, binary.BigEndian.Uint64(e.Value))
		}
		return nil
	})
	return err
}

// inspect looks at suspect lists, and names the first record that is not as it should be.
func (k *Keeper) inspect(ctx context.Context, r root, suspects map[int]bool) error {
	stored := map[int][]string{}
	if err := k.heads(ctx, r, func(name string, _ uint64) {
		if in := listOf(name); suspects[in] && !strings.HasPrefix(name, revisionsPrefix) {
			stored[in] = append(stored[in], name)
		}
	}); err != nil {
		return err
	}
	order := make([]int, 0, len(suspects))
	for in := range suspects {
		order = append(order, in)
	}
	slices.Sort(order)
	for _, in := range order {
		for {
			err := k.inspectList(ctx, r, in, stored[in])
			if err == nil {
				break
			}
			if !errors.Is(err, errMoving) {
				return err
			}
		}
	}
	return nil
}

// inspectList compares one list with the records in it, and with those that were found
// where it should have their numbers.
func (k *Keeper) inspectList(ctx context.Context, r root, in int, stored []string) error {
	b, err := k.readBranch(ctx, r, []int{in})
	if err != nil {
		return err
	}
	known := b.nodes[in/fanout].lists[in].Records
	names := slices.Clone(stored)
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		e, err := k.Store.Get(ctx, r.entry(name))
		if err != nil && !errors.Is(err, keystore.ErrNotFound) {
			return err
		}
		var number uint64
		if len(e.Value) >= head {
			number = binary.BigEndian.Uint64(e.Value)
		}
		if number == known[name] {
			continue
		}
		now, err := k.Store.Get(ctx, r.entry(summaryRecord))
		if err != nil && !errors.Is(err, keystore.ErrNotFound) {
			return err
		}
		if now.Revision != b.top.Entry {
			return errMoving
		}
		return rolledBack(name, number, known[name])
	}
	return nil
}
