package kms

import (
	"context"
	"errors"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/record"
)

// MaxNewKeys is how many keys CreateKeys makes in one call.
const MaxNewKeys = 1000

// Keys are stored together as far as a transaction goes: two records each, and for each ten
// neighbours two lists and two nodes of the index of revisions.
const (
	createPage  = 40
	createBytes = 256 << 10 // of their records, before they are sealed
)

// CreateKeys makes count keys with the indexes from n.Index on, named n.Name, a dash and the
// index. They are stored some at a time, in order; where one cannot be made, those
// before it stay, and their number is returned with the error.
func (s *Service) CreateKeys(ctx context.Context, who Actor, n NewKey, count int) (made int, err error) {
	l, err := s.serving()
	if err != nil {
		return 0, err
	}
	if err := n.fill(); err != nil {
		return 0, err
	}
	switch {
	case n.Index == 0:
		return 0, fault.New(fault.BadRequest, "index: many keys need the first index to be given")
	case count < 1 || count > MaxNewKeys || uint64(n.Index)+uint64(count) > 1<<32:
		return 0, fault.New(fault.BadRequest, "count: %d keys from index %d on cannot be made in one call; at most %d, up to index %d", count, n.Index, MaxNewKeys, uint32(1<<32-1))
	}
	if n.Name == "" {
		n.Name = "key"
	}
	for made < count && err == nil {
		var some int
		some, err = s.createSome(ctx, l, n, made, count)
		if errors.Is(err, record.ErrRotated) {
			err = nil // they were wrapped by the root before
		}
		made += some
	}
	if made > 0 {
		s.cfg.Log.Info("keys created", "by", who, "from", n.Index, "count", made, "algorithm", n.Algorithm, "purpose", n.Purpose.String())
	}
	if err != nil {
		err = fault.Wrap(fault.CodeOf(err), err, "%d of %d keys were made", made, count)
	}
	return made, err
}

// createSome makes the keys of one transaction, from the one at a place on.
func (s *Service) createSome(ctx context.Context, l *loaded, n NewKey, at, count int) (int, error) {
	var keys []*Key
	var changes []record.Change
	size := 0
	for len(keys) < createPage && at+len(keys) < count && size < createBytes {
		one := n
		one.Index = n.Index + uint32(at+len(keys))
		one.Name = n.Name + "-" + indexRef(one.Index)
		k, stored, err := s.draft(ctx, l, one, s.cfg.Machine.GenerateKey)
		if err != nil && len(keys) == 0 {
			return 0, err
		}
		if err != nil {
			break // those before it are made; the next call fails on it
		}
		keys, changes = append(keys, k), append(changes, stored...)
		size += len(stored[0].Content)
	}
	revision, err := s.keep.Apply(ctx, changes...)
	if errors.Is(err, keystore.ErrConflict) {
		return 0, fault.New(fault.Conflict, "a key from index %d to %d, or its name, was taken at the same moment by another caller", keys[0].Index, keys[len(keys)-1].Index)
	}
	if err != nil {
		return 0, err
	}
	for _, k := range keys {
		k.revision = revision
		if err := l.keys.put(k); err != nil {
			return 0, err
		}
	}
	return len(keys), nil
}
