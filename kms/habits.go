package kms

import (
	"context"
	"errors"
	"strings"

	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/activity"
	"github.com/trikey/trikey/kms/record"
)

// applyHabits takes in what the store knows of an app's addresses and hours.
func (l *loaded) applyHabits(r record.Record) error {
	var p activity.Profile
	if err := r.Decode(&p); err != nil {
		return err
	}
	l.activity.Apply(strings.TrimPrefix(r.Name, activity.Prefix), p)
	return nil
}

// flushHabits writes what is new of the apps' addresses and hours, together with what
// other nodes have written.
func (s *Service) flushHabits(ctx context.Context, l *loaded) error {
	var failed error
	for app, p := range l.activity.Dirty() {
		var err error
		for range flushTries {
			err = s.flushHabit(ctx, app, p)
			if !errors.Is(err, keystore.ErrConflict) && !errors.Is(err, record.ErrRotated) {
				break
			}
		}
		if err != nil {
			l.activity.Again(app)
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

func (s *Service) flushHabit(ctx context.Context, app string, p activity.Profile) error {
	name := activity.Prefix + app
	var all activity.Profile
	r, err := s.keep.Get(ctx, name)
	switch {
	case errors.Is(err, keystore.ErrNotFound):
		r = record.Record{Name: name}
	case err != nil:
		return err
	default:
		if err := r.Decode(&all); err != nil {
			return err
		}
	}
	all.Merge(p)
	content, err := record.JSON(all)
	if err == nil {
		_, err = s.keep.Apply(ctx, record.Replace(r, content))
	}
	return err
}
