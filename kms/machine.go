package kms

import (
	"context"
	"errors"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
)

// FollowMachine loads the records whenever the machine is found open, and unloads them
// when it is found sealed, until ctx ends. It is for a machine that runs apart; that in
// the process is told by its console. While the machine cannot be reached the records stay:
// whether it was sealed is not known, and nothing is served without it anyway.
func (s *Service) FollowMachine(ctx context.Context, every time.Duration) {
	var root hsm.ID // that the records were loaded under
	for {
		wait := every
		status, err := s.cfg.Machine.Status(ctx)
		_, away := s.serving()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && status.State == hsm.Open:
			if away == nil && status.RootID == root {
				break
			}
			if s.Load(ctx) == nil {
				root = status.RootID
			} else {
				wait = max(every, 5*time.Second) // it has said why
			}
		case away == nil && (err == nil || errors.Is(err, fault.Sealed)):
			s.cfg.Log.Warn("the crypto machine is sealed")
			s.Unload()
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}
