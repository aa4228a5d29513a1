package kms

import (
	"context"
	"errors"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/record"
)

// follow takes changes in until ctx ends or they can no longer be followed. A store, or a
// machine, that does not answer is asked again, from the revision that was seen last.
func (s *Service) follow(ctx context.Context, l *loaded, from int64) {
	var err error
	for {
		from, err = s.keep.Watch(ctx, from, func(e record.Event) error { return s.apply(ctx, l, e) })
		if !errors.Is(err, fault.Unavailable) || !s.pause(ctx) {
			break
		}
		s.cfg.Log.Warn("following the key store's changes again", "revision", from, "why", err)
	}
	close(l.done)
	s.lost(ctx, l, err)
}

// pause waits before the store is tried again, and reports false when ctx ends meanwhile.
func (s *Service) pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(s.cfg.StoreCheck):
		return true
	}
}

// lost says what becomes of the service when it can no longer follow the store. A
// record that does not open ends its readiness: it was altered while we ran.
func (s *Service) lost(ctx context.Context, l *loaded, err error) {
	if ctx.Err() != nil || errors.Is(err, keystore.ErrClosed) || errors.Is(err, fault.Sealed) {
		return
	}
	var again *loaded
	if errors.Is(err, record.ErrRotated) || errors.Is(err, keystore.ErrCompacted) {
		s.cfg.Log.Info("reading every record anew", "why", err)
		again, err = s.loadPatiently(ctx)
	}
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Error("the key store's changes cannot be followed", "error", err)
	}
	s.mu.Lock()
	current := s.loaded == l
	switch {
	case current && err == nil:
		s.loaded = again
	case current:
		s.loaded, s.why = nil, fault.New(fault.Unavailable, "the key store cannot be served: %v", err)
	}
	s.mu.Unlock()
	switch {
	case current:
		l.stop()
		l.apps.Wipe()
	case again != nil: // unloaded meanwhile
		again.stop()
		again.apps.Wipe()
	}
}

// promotionTries is how often a service looks whether the machine, which it shares with the
// one that rotates the root, has followed the store.
const promotionTries = 10

// loadPatiently loads, again and again while the store or the machine does not answer.
func (s *Service) loadPatiently(ctx context.Context) (*loaded, error) {
	for tries := 0; ; tries++ {
		l, err := s.load(ctx)
		soon := errors.Is(err, fault.RootGeneration) && tries < promotionTries
		if !errors.Is(err, fault.Unavailable) && !soon || !s.pause(ctx) {
			return l, err
		}
	}
}

// awaitStore has the service loaded when the store answers. The caller holds mu.
func (s *Service) awaitStore() {
	ctx, stop := context.WithCancel(context.Background())
	s.await = stop
	s.followers.Go(func() {
		if !s.pause(ctx) {
			return
		}
		l, err := s.loadPatiently(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case ctx.Err() != nil: // Unload ended it, under mu
			if l != nil {
				l.stop()
				l.apps.Wipe()
				s.closeEpochs()
			}
		case err != nil:
			s.cfg.Log.Error("the key store cannot be served", "error", err)
			s.why = fault.New(fault.Unavailable, "the key store cannot be served: %v", err)
		default:
			s.loaded, s.why = l, nil
			s.cfg.Log.Info("serving", "keys", l.keys.len(), "apps", l.apps.Len())
		}
	})
}
