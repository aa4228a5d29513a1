package kms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/record"
)

// usePrefix is where counts of operations are: key-use/0000000007, of all nodes. They
// are apart from the keys' own records, which change seldom.
const usePrefix = "key-use/"

func useEntry(index uint32) string { return fmt.Sprintf("%s%010d", usePrefix, index) }

// tally counts what one version did: in this process, and everywhere else before.
type tally struct {
	mine    atomic.Uint64 // in this process; never decreases
	flushed atomic.Uint64 // the part of mine that the store has
	rest    atomic.Int64  // what the store has besides that
}

// total is the count of all nodes, as far as they have told.
func (t *tally) total() uint64 {
	if n := int64(t.mine.Load()) + t.rest.Load(); n > 0 {
		return uint64(n)
	}
	return 0
}

// versionUse is what one version was used for. It is changed without locks.
type versionUse struct {
	version      uint32
	seals, opens tally
	last         atomic.Int64 // Unix time in seconds of the last operation anywhere
	asked        atomic.Bool  // rotation by count has been asked for
}

// seen notes when a version was last used. Most calls fall into the second of the one
// before and write nothing.
func (v *versionUse) seen(now int64) {
	if v.last.Load() < now {
		v.last.Store(now)
	}
}

// keyUse has the counts of a key's versions, oldest first. The list is replaced, never
// changed: only the first use of a version does that.
type keyUse struct {
	versions atomic.Pointer[[]*versionUse]
}

func (u *keyUse) list() []*versionUse {
	if u == nil {
		return nil
	}
	if l := u.versions.Load(); l != nil {
		return *l
	}
	return nil
}

// of returns a version's counts, nil when it was never used. The newest is the likeliest.
func (u *keyUse) of(version uint32) *versionUse {
	for _, v := range slices.Backward(u.list()) {
		if v.version == version {
			return v
		}
	}
	return nil
}

// useFor returns the counts of a key, and begins them. The caller holds mu.
func (x *keyIndex) useFor(index uint32) *keyUse {
	u := x.used[index]
	if u == nil {
		u = &keyUse{}
		x.used[index] = u
	}
	return u
}

// useOf returns a version's counts, and begins them at its first use.
func (x *keyIndex) useOf(k *Key, version uint32) *versionUse {
	if v := k.use.of(version); v != nil {
		return v
	}
	// What was destroyed is not counted any more.
	return x.beginUse(k.Index, version, k.gone)
}

// beginUse returns a version's counts, new ones where there are none, and forgets those of
// versions that are gone.
func (x *keyIndex) beginUse(index, version uint32, gone func(uint32) bool) *versionUse {
	x.mu.Lock()
	defer x.mu.Unlock()
	of := x.useFor(index)
	if v := of.of(version); v != nil {
		return v
	}
	v := &versionUse{version: version}
	all := append(slices.Clone(of.list()), v)
	all = slices.DeleteFunc(all, func(u *versionUse) bool { return u != v && gone(u.version) })
	slices.SortFunc(all, func(a, b *versionUse) int { return cmp.Compare(a.version, b.version) })
	of.versions.Store(&all)
	return v
}

// Use is what a version has been used for, by all nodes.
type Use struct {
	Key, Version uint32
	Seals, Opens uint64
	Last         time.Time // zero: never
}

// Use returns what the versions of a key that were used have been used for.
func (k *Key) Use() []Use {
	list := k.use.list()
	out := make([]Use, len(list))
	for i, v := range list {
		out[i] = Use{Key: k.Index, Version: v.version, Seals: v.seals.total(), Opens: v.opens.total()}
		if last := v.last.Load(); last != 0 {
			out[i].Last = time.Unix(last, 0).UTC()
		}
	}
	return out
}

// Uses calls f with what each key version was used for in this process since it loaded
// its keys.
func (s *Service) Uses(f func(Use)) {
	l, err := s.serving()
	if err != nil {
		return
	}
	for index, u := range l.keys.inUse() {
		for _, v := range u.list() {
			f(Use{Key: index, Version: v.version, Seals: v.seals.mine.Load(), Opens: v.opens.mine.Load()})
		}
	}
}

func (x *keyIndex) inUse() map[uint32]*keyUse {
	x.mu.RLock()
	defer x.mu.RUnlock()
	all := make(map[uint32]*keyUse, len(x.used))
	for index, u := range x.used {
		if len(u.list()) > 0 { // it was looked at only
			all[index] = u
		}
	}
	return all
}

// storedUse is the content of a record.
type storedUse struct {
	Versions []storedVersionUse `json:"versions"`
}

type storedVersionUse struct {
	Version uint32 `json:"version"`
	Seals   uint64 `json:"seals"`
	Opens   uint64 `json:"opens"`
	Last    int64  `json:"last"`
}

// applyUse takes in what the store has of a key.
func (x *keyIndex) applyUse(r record.Record) error {
	index, err := strconv.ParseUint(strings.TrimPrefix(r.Name, usePrefix), 10, 32)
	if err != nil {
		return fault.New(fault.RecordDamaged, "record %s: is not named for a key", r.Name)
	}
	var stored storedUse
	if err := r.Decode(&stored); err != nil {
		return err
	}
	if !x.has(uint32(index)) {
		return nil
	}
	for _, s := range stored.Versions {
		// Should it be destroyed by now, the next count that is written leaves it out.
		v := x.beginUse(uint32(index), s.Version, func(uint32) bool { return false })
		v.seals.rest.Store(int64(s.Seals) - int64(v.seals.flushed.Load()))
		v.opens.rest.Store(int64(s.Opens) - int64(v.opens.flushed.Load()))
		v.last.Store(max(v.last.Load(), s.Last))
	}
	return nil
}

// flushPage and flushVersions are how many keys, and how many versions of them, have their
// counts written in one transaction: with the root's entry it stays within keystore.MaxTxn,
// and the versions' some 150 bytes each within keystore.MaxTxnBytes.
const (
	flushPage     = 100
	flushVersions = 4000
)

// flushPages cuts keys into transactions.
func flushPages(keys *keyIndex, all []uint32) iter.Seq[[]uint32] {
	return func(yield func([]uint32) bool) {
		for len(all) > 0 {
			n, versions := 0, 0
			for n < min(len(all), flushPage) {
				if k := keys.peek(all[n]); k != nil {
					versions += len(k.Versions)
				}
				if n > 0 && versions > flushVersions {
					break
				}
				n++
			}
			if !yield(all[:n]) {
				return
			}
			all = all[n:]
		}
	}
}

// flushTries bounds how often a transaction is tried that another node's crosses.
const flushTries = 5

// flush writes what was counted since the last time: one transaction for many keys.
func (s *Service) flush(ctx context.Context, l *loaded) error {
	var dirty []uint32
	used := l.keys.inUse()
	for index, u := range used {
		for _, v := range u.list() {
			if v.seals.mine.Load() != v.seals.flushed.Load() || v.opens.mine.Load() != v.opens.flushed.Load() {
				dirty = append(dirty, index)
				break
			}
		}
	}
	slices.Sort(dirty)
	for page := range flushPages(l.keys, dirty) {
		var err error
		for range flushTries {
			err = s.flushPage(ctx, l, used, page)
			if !errors.Is(err, keystore.ErrConflict) && !errors.Is(err, record.ErrRotated) {
				break
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) flushPage(ctx context.Context, l *loaded, used map[uint32]*keyUse, page []uint32) (err error) {
	var changes []record.Change
	var undo []func()
	defer func() {
		if err != nil {
			for _, f := range undo {
				f()
			}
		}
	}()
	for _, index := range page {
		k := l.keys.peek(index)
		if k == nil {
			continue
		}
		entry := useEntry(index)
		var stored storedUse
		r, err := s.keep.Get(ctx, entry)
		switch {
		case errors.Is(err, keystore.ErrNotFound):
			r = record.Record{Name: entry}
		case err != nil:
			return err
		default:
			if err := r.Decode(&stored); err != nil {
				return err
			}
		}
		undo = append(undo, stored.add(k, used[index])...)
		content, err := record.JSON(stored)
		if err != nil {
			return err
		}
		changes = append(changes, record.Replace(r, content))
	}
	_, err = s.keep.Apply(ctx, changes...)
	return err
}

// add adds what this process counted since its last flush. It notes that as flushed
// before it is, because the watch may bring the record back sooner than the transaction
// returns; what it returns takes that back.
func (s *storedUse) add(k *Key, u *keyUse) (undo []func()) {
	s.Versions = slices.DeleteFunc(s.Versions, func(v storedVersionUse) bool { return k.gone(v.Version) })
	take := func(t *tally, into *uint64) {
		now, before, rest := t.mine.Load(), t.flushed.Load(), t.rest.Load()
		*into += now - before
		t.flushed.Store(now)
		t.rest.Store(int64(*into) - int64(now))
		undo = append(undo, func() { t.flushed.Store(before); t.rest.Store(rest) })
	}
	for _, v := range u.list() {
		var gone storedVersionUse // what was destroyed is counted nowhere
		into := &gone
		if !k.gone(v.version) {
			at, found := slices.BinarySearchFunc(s.Versions, v.version, func(s storedVersionUse, n uint32) int { return cmp.Compare(s.Version, n) })
			if !found {
				s.Versions = slices.Insert(s.Versions, at, storedVersionUse{Version: v.version})
			}
			into = &s.Versions[at]
		}
		take(&v.seals, &into.Seals)
		take(&v.opens, &into.Opens)
		into.Last = max(into.Last, v.last.Load())
	}
	return undo
}
