package kms

import (
	"context"
	"errors"
	"strings"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/activity"
	"github.com/trikey/trikey/kms/approval"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/nonce"
	"github.com/trikey/trikey/kms/people"
	"github.com/trikey/trikey/kms/record"
	"github.com/trikey/trikey/kms/token"
)

// Load reads every record and begins to serve. A record that was altered is
// refused by name, and nothing is served. Where the store does not answer, Load says so,
// and serving begins by itself when it does.
func (s *Service) Load(ctx context.Context) error {
	s.Unload()
	l, err := s.load(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.cfg.Log.Error("the key store cannot be served", "error", err)
		s.why = fault.New(fault.Unavailable, "the key store cannot be served: %v", err)
		if errors.Is(err, keystore.ErrUnavailable) {
			s.awaitStore()
		}
		return err
	}
	s.loaded, s.why = l, nil
	if changes, err := s.keep.Changes(ctx); err == nil && s.cfg.Loaded != nil {
		s.cfg.Loaded(l.keys.len(), l.apps.Len(), changes)
	}
	s.cfg.Log.Info("serving", "keys", l.keys.len(), "apps", l.apps.Len())
	return nil
}

func (s *Service) load(ctx context.Context) (*loaded, error) {
	if err := s.keep.Attach(ctx); err != nil {
		return nil, err
	}
	if err := s.checkSplit(ctx); err != nil {
		return nil, err
	}
	if err := s.purgeLeft(ctx); err != nil {
		return nil, err
	}
	verified := make(chan error, 1)
	go func() { verified <- s.keep.Verify(ctx) }()
	l, found, from, err := s.readAll(ctx)
	// What was read is of use only if it is what was written.
	err = errors.Join(<-verified, err)
	if err == nil {
		err = s.openDestruction(ctx, l, found)
	}
	if err != nil {
		if l != nil {
			l.apps.Wipe()
		}
		return nil, err
	}
	l.nonces = nonce.New(s.cfg.Store, hsm.NewID().String(), s.cfg.Now)
	used, err := l.nonces.Load(ctx)
	if err != nil {
		l.apps.Wipe()
		return nil, err
	}
	follow, stop := context.WithCancel(context.Background())
	l.stop = stop
	s.followers.Go(func() { l.nonces.Run(follow, used, s.cfg.StoreCheck) })
	s.followers.Go(func() { s.follow(follow, l, from) })
	s.followers.Go(func() {
		defer close(l.left)
		if !s.cfg.Idle {
			s.keepHouse(follow, l)
		}
	})
	return l, nil
}

// readAll reads every record that is served from memory, and returns the revision from which
// their changes are to be followed.
func (s *Service) readAll(ctx context.Context) (*loaded, *left, int64, error) {
	l := &loaded{done: make(chan struct{}), left: make(chan struct{}), exhausted: make(chan exhausted, 64)}
	l.keys = newKeyIndex(l.unlock)
	l.spending, l.keep = newSpending(), make(chan struct{}, 1)
	l.alert, l.activity = s.cfg.Alert, activity.New(s.cfg.Alert, s.cfg.UnusualRate)
	l.apps = auth.New(s.keep, s.cfg.Now, l.keys.grantable)
	l.tokens = token.New(s.cfg.Tokens, &tokenKeys{s, l}, s.keep, s.cfg.Now)
	found := &left{}
	from, err := s.loadKeys(ctx, l, found)
	if err != nil {
		return nil, nil, 0, err
	}
	for _, part := range []struct {
		prefix string
		apply  func(record.Record) error
	}{
		{auth.Prefix, l.apps.Apply},
		{usePrefix, l.keys.applyUse},
		{rangesRecord, l.ranges.apply},
		{backupsRecord, l.applyBackup},
		{token.Prefix, l.tokens.Apply},
		{suspensionPrefix, l.spending.apply},
		{activity.Prefix, l.applyHabits},
		{people.Prefix, onlyOpen},
		{approval.Prefix, onlyOpen},
		{censusPrefix, onlyOpen},
	} {
		revision, err := s.keep.Load(ctx, part.prefix, part.apply)
		if err != nil {
			return nil, nil, 0, err
		}
		from = min(from, revision)
	}
	return l, found, from, nil
}

// onlyOpen is for records that are read each time they are asked for: that one of them was
// altered is known at once, and not only then. Names of keys and certificates of destruction
// are too many for that; what they are used for opens them.
func onlyOpen(r record.Record) error {
	clear(r.Content)
	return nil
}

// apply takes a change in.
func (s *Service) apply(ctx context.Context, l *loaded, e record.Event) error {
	apply, remove := func(r record.Record) error { return s.applyKey(ctx, l, r) }, l.keys.remove
	switch {
	case strings.HasPrefix(e.Name, keyPrefix):
	case strings.HasPrefix(e.Name, auth.Prefix):
		apply, remove = l.apps.Apply, l.apps.Remove
	case strings.HasPrefix(e.Name, token.Prefix):
		apply, remove = l.tokens.Apply, l.tokens.Remove
	case strings.HasPrefix(e.Name, usePrefix) && !e.Deleted:
		apply = l.keys.applyUse
	case e.Name == backupsRecord && !e.Deleted:
		apply = l.applyBackup
	case strings.HasPrefix(e.Name, suspensionPrefix):
		apply, remove = l.spending.apply, l.spending.remove
	case strings.HasPrefix(e.Name, activity.Prefix) && !e.Deleted:
		apply = l.applyHabits
	case e.Name == rangesRecord && !e.Deleted:
		apply = l.ranges.apply
	default:
		return nil
	}
	if e.Deleted {
		remove(e.Name, e.Entry)
		return nil
	}
	return apply(e.Record)
}

// applyKey takes a key in that was changed here or by another node. What that one has
// destroyed is erased here too.
func (s *Service) applyKey(ctx context.Context, l *loaded, r record.Record) error {
	k, err := parseKey(r)
	if err != nil {
		return err
	}
	var before []hsm.WrappedKey
	if len(k.destroyed()) > 0 {
		if old := l.keys.peek(k.Index); old != nil && old.revision < k.revision {
			for _, v := range old.Versions {
				if v.Wrapped != "" && k.gone(v.Version) {
					before = append(before, v.Wrapped)
				}
			}
		}
	}
	l.keys.store(k, r.Content)
	if len(before) == 0 {
		return nil
	}
	if err := s.erase(ctx, l, k, before); err != nil {
		s.cfg.Log.Error("a destroyed key version is not erased here yet; it is tried again", "index", k.Index, "error", err)
	}
	return nil
}
