package kms

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/epochs"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/record"
)

// epochsRecord says which destruction keys the wrapped keys are locked under, and how
// many transactions have destroyed versions: a file of destruction keys that is behind is
// an older one.
const epochsRecord = "epochs"

type epochsState struct {
	ID      hsm.ID `json:"id"`
	Counter uint64 `json:"counter"`
}

// openEpochs opens the destruction keys and compares them with the record. It returns the
// number of destructions that the records know of.
func (s *Service) openEpochs(ctx context.Context) (*epochs.Keys, uint64, error) {
	state, stored, err := s.readEpochs(ctx)
	if err != nil {
		return nil, 0, err
	}
	if s.cfg.Epochs == "" {
		if stored {
			return nil, 0, fault.New(fault.BadConfig, "the key store's keys are locked under destruction keys, but this service has no file of them")
		}
		return nil, 0, nil
	}
	k, err := s.epochsFile(ctx, stored)
	if err != nil {
		return nil, 0, err
	}
	switch {
	case !stored:
		content, err := record.JSON(epochsState{ID: k.ID(), Counter: k.Counter()})
		if err == nil {
			_, err = s.keep.Apply(ctx, record.Create(epochsRecord, content))
		}
		if errors.Is(err, keystore.ErrConflict) {
			err = errOtherEpochs
		}
		return k, k.Counter(), err
	case k.ID() != state.ID:
		return nil, 0, errOtherEpochs
	case k.Counter() < state.Counter:
		s.cfg.Log.Warn("the file of destruction keys is behind the key store: an older one was put there, or this node was away; "+
			"what was destroyed since is erased in it now", "file", k.Counter(), "store", state.Counter)
	case k.Counter() > state.Counter:
		s.cfg.Log.Warn("the key store is behind the file of destruction keys: a backup was restored; what was destroyed since stays so",
			"file", k.Counter(), "store", state.Counter)
		_, _, err = record.Update(ctx, s.keep, epochsRecord, func(e *epochsState) error { e.Counter = max(e.Counter, k.Counter()); return nil })
	}
	return k, max(state.Counter, k.Counter()), err
}

var errOtherEpochs = fault.New(fault.RecordDamaged, "the file of destruction keys (%s in the data directory) is of another key store: "+
	"put there a copy of the newest one of this key store, from another node or from trikey backup epochs", epochs.File)

func (s *Service) readEpochs(ctx context.Context) (state epochsState, stored bool, err error) {
	r, err := s.keep.Get(ctx, epochsRecord)
	if errors.Is(err, keystore.ErrNotFound) {
		return state, false, nil
	}
	if err == nil {
		err = r.Decode(&state)
	}
	return state, true, err
}

// epochsFile returns the destruction keys that the service has open, or opens them, or
// makes them where the records know of none.
func (s *Service) epochsFile(ctx context.Context, stored bool) (*epochs.Keys, error) {
	s.erasing.Lock()
	defer s.erasing.Unlock()
	if s.epochs != nil {
		return s.epochs, nil
	}
	k, err := epochs.Open(ctx, s.cfg.Machine, s.cfg.Epochs)
	switch {
	case errors.Is(err, fault.NotFound) && stored:
		return nil, fault.New(fault.RecordDamaged, "there is no file %s in %s, and without it no key opens: put there a copy of the newest one, "+
			"from another node or from trikey backup epochs", epochs.File, s.cfg.Epochs)
	case errors.Is(err, fault.NotFound):
		k, err = epochs.Create(ctx, s.cfg.Machine, s.cfg.Epochs)
	}
	if err == nil {
		s.epochs = k
	}
	return k, err
}

// closeEpochs wipes the destruction keys, before the machine is sealed.
func (s *Service) closeEpochs() {
	s.erasing.Lock()
	defer s.erasing.Unlock()
	if s.epochs != nil {
		s.epochs.Close()
		s.epochs = nil
	}
}

// unlock opens the locked keys of records. A version whose destruction key is erased is
// destroyed, whatever an older record says.
func (l *loaded) unlock(keys ...*Key) error {
	var items []epochs.Item
	var of []*Version
	for _, k := range keys {
		for i := range k.Versions {
			if v := &k.Versions[i]; v.Locked != "" {
				items = append(items, epochs.Item{Leaf: epochs.Leaf{Index: k.Index, Version: v.Version}, Locked: v.Locked})
				of = append(of, v)
			}
		}
	}
	switch {
	case len(items) == 0:
		return nil
	case l.epochs == nil:
		return errOtherEpochs
	}
	if err := l.epochs.Unlock(items); err != nil {
		return err
	}
	for i, v := range of {
		v.Locked, v.Wrapped = "", items[i].Wrapped
		if v.Wrapped == "" {
			v.State = life.Destroyed
		}
	}
	for _, k := range keys {
		if err := k.check(keyEntry(k.Index)); err != nil {
			return err
		}
	}
	return nil
}

// lock replaces the wrapped keys by locked ones.
func (l *loaded) lock(k *Key) error {
	if l.epochs == nil {
		return nil
	}
	var items []epochs.Item
	var of []*Version
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Wrapped != "" {
			items = append(items, epochs.Item{Leaf: epochs.Leaf{Index: k.Index, Version: v.Version}, Wrapped: v.Wrapped})
			of = append(of, v)
		}
	}
	if len(items) == 0 {
		return nil
	}
	if err := l.epochs.Lock(items); err != nil {
		return err
	}
	for i, v := range of {
		v.Wrapped, v.Locked = "", items[i].Locked
	}
	return nil
}

// content is a key's record. The key stays as it is.
func (l *loaded) content(k *Key) ([]byte, error) {
	stored := *k
	stored.Versions = slices.Clone(k.Versions)
	if err := l.lock(&stored); err != nil {
		return nil, err
	}
	return record.JSON(stored)
}

// Locked returns the wrapped keys of keys' versions as they are stored: sealed once more.
// A version that is destroyed has none.
func (s *Service) Locked(keys ...*Key) (map[epochs.Leaf]string, error) {
	l, err := s.serving()
	if err != nil {
		return nil, err
	}
	out := map[epochs.Leaf]string{}
	var items []epochs.Item
	for _, k := range keys {
		for _, v := range k.Versions {
			if at := (epochs.Leaf{Index: k.Index, Version: v.Version}); v.Wrapped != "" {
				items = append(items, epochs.Item{Leaf: at, Wrapped: v.Wrapped})
				out[at] = v.Wrapped.String()
			}
		}
	}
	if l.epochs == nil || len(items) == 0 {
		return out, nil
	}
	// What was destroyed at this moment is left out.
	items = slices.DeleteFunc(items, func(it epochs.Item) bool { return l.epochs.Gone(it.Leaf) })
	clear(out)
	err = l.epochs.Lock(items)
	for _, it := range items {
		out[it.Leaf] = it.Locked.String()
	}
	return out, err
}

// unused returns the first number from one that no version has had, not even one that
// was destroyed after the backup which this key store was restored from.
func (l *loaded) unused(index, version uint32) uint32 {
	for l.epochs != nil && l.epochs.Gone(epochs.Leaf{Index: index, Version: version}) {
		version++
	}
	return version
}

// destroyed returns the versions of a key that are destroyed.
func (k *Key) destroyed() (leaves []epochs.Leaf) {
	for n := range k.Forgotten {
		leaves = append(leaves, epochs.Leaf{Index: k.Index, Version: n + 1})
	}
	for _, v := range k.Versions {
		if v.State == life.Destroyed {
			leaves = append(leaves, epochs.Leaf{Index: k.Index, Version: v.Version})
		}
	}
	return leaves
}

// erase makes a destruction that is recorded real: the destruction keys are erased, and
// the machine forgets the keys. What cannot be done is done before the steward's next
// round, or when the service loads again.
func (s *Service) erase(ctx context.Context, l *loaded, k *Key, before []hsm.WrappedKey) error {
	failpoint.Hit("destruction-recorded")
	failed := s.eraseKeys(ctx, l, k)
	if len(before) > 0 {
		failed = errors.Join(failed, s.forgetKeys(ctx, before))
	}
	if failed != nil {
		l.owed.Store(k.Index, before)
	}
	return failed
}

// eraseKeys erases the destruction keys of what is destroyed of a key.
func (s *Service) eraseKeys(ctx context.Context, l *loaded, k *Key) error {
	if l.epochs == nil {
		return nil
	}
	leaves := slices.DeleteFunc(k.destroyed(), l.epochs.Gone)
	if len(leaves) == 0 {
		return nil
	}
	state, _, err := s.readEpochs(ctx)
	if err != nil {
		return err
	}
	return l.epochs.Destroy(ctx, state.Counter, leaves)
}

// forgetKeys has the machine forget destroyed keys.
func (s *Service) forgetKeys(ctx context.Context, keys []hsm.WrappedKey) error {
	ops := make([]hsm.Op, len(keys))
	for i, w := range keys {
		ops[i] = hsm.Op{Kind: hsm.Forget, Key: w}
	}
	err := s.cfg.Machine.Do(ctx, ops)
	for _, op := range ops {
		err = errors.Join(err, op.Err)
	}
	return err
}

// settleOwed tries once more what erase could not do.
func (s *Service) settleOwed(ctx context.Context, l *loaded) (err error) {
	l.owed.Range(func(index, before any) bool {
		l.owed.Delete(index)
		if k := l.keys.get(index.(uint32)); k != nil {
			err = errors.Join(err, s.erase(ctx, l, k, before.([]hsm.WrappedKey)))
		}
		return true
	})
	return err
}

// purge takes what was destroyed out of the key store's file.
func (s *Service) purge(ctx context.Context) error {
	if p, ok := s.cfg.Store.(keystore.Purger); ok {
		return p.Purge(ctx)
	}
	return nil
}

// purgeLeft does what a purge that was cut short has left, when the service opens.
func (s *Service) purgeLeft(ctx context.Context) error {
	s.erasing.Lock()
	begun := s.epochs != nil
	s.erasing.Unlock()
	if begun || s.cfg.Epochs == "" {
		return nil
	}
	return s.purge(ctx)
}

// left is what loading found to do in the file of destruction keys.
type left struct {
	mu     sync.Mutex    // guards leaves
	leaves []epochs.Leaf // of what the records say is destroyed
}

// loadKeys reads the keys in, as they are locked: they are unlocked when they are used.
func (s *Service) loadKeys(ctx context.Context, l *loaded, found *left) (from int64, err error) {
	return s.keep.LoadMany(ctx, keyPrefix, func(r record.Record) error {
		k, err := parseKey(r)
		if err != nil {
			return err
		}
		l.keys.store(k, r.Content)
		if leaves := k.destroyed(); len(leaves) > 0 {
			found.mu.Lock()
			defer found.mu.Unlock()
			found.leaves = append(found.leaves, leaves...)
		}
		return nil
	})
}

// openDestruction opens the destruction keys, and erases those of what the records say is
// destroyed.
func (s *Service) openDestruction(ctx context.Context, l *loaded, found *left) (err error) {
	var counter uint64
	if l.epochs, counter, err = s.openEpochs(ctx); err != nil || l.epochs == nil {
		return err
	}
	return l.epochs.Destroy(ctx, counter, slices.DeleteFunc(found.leaves, l.epochs.Gone))
}
