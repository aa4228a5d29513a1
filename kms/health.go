package kms

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/record"
)

// checkTime bounds how long the store may take to answer a check, so that whoever asks
// for the service's readiness has an answer in time.
const checkTime = time.Second

// health knows whether the store answers.
type health struct {
	store keystore.Store
	log   *slog.Logger
	now   func() time.Time
	stop  context.CancelFunc
	done  chan struct{}

	mu    sync.Mutex // guards all below
	err   error      // nil while the store answers
	since time.Time  // since when it does not
}

// start begins to look after the store.
func (h *health) start(s *Service) {
	h.store, h.log, h.now, h.done = s.cfg.Store, s.cfg.Log, s.cfg.Now, make(chan struct{})
	ctx, stop := context.WithCancel(context.Background())
	h.stop = stop
	go func() {
		defer close(h.done)
		for s.pause(ctx) {
			if err := h.ask(ctx); errors.Is(err, keystore.ErrClosed) {
				return
			}
		}
	}()
}

func (h *health) close() {
	h.stop()
	<-h.done
}

// check returns why the store does not answer. One that is known to be away is not asked.
func (h *health) check(ctx context.Context) error {
	h.mu.Lock()
	err := h.err
	h.mu.Unlock()
	if errors.Is(err, keystore.ErrUnavailable) {
		return err
	}
	return h.ask(ctx)
}

// ask asks the store.
func (h *health) ask(ctx context.Context) error {
	bound, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	_, err := record.RootOf(bound, h.store)
	if ctx.Err() != nil {
		return ctx.Err() // says nothing of the store
	}
	if bound.Err() != nil && err != nil {
		err = keystore.ErrUnavailable
	}
	h.tell(err)
	return err
}

// tell takes in how the store is, and logs when that is news.
func (h *health) tell(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.err == nil && err != nil:
		h.since = h.now()
		h.log.Warn("the key store does not answer: calls are served from memory, changes are refused", "error", err)
	case h.err != nil && err == nil:
		h.log.Info("the key store answers again", "away", h.now().Sub(h.since))
	}
	h.err = err
}

func (h *health) degraded() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		return nil
	}
	return fault.Wrap(fault.Unavailable, h.err, "since %s the key store does not answer; calls are served from memory, changes are refused",
		h.since.UTC().Format(time.RFC3339))
}
