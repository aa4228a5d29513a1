package kms

import (
	"context"
	"errors"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/record"
)

// The data plane serves from memory, which is behind the store by as long as a change
// takes to arrive. Management reads the store itself: whoever was told that a change is
// made finds it made at every node.

// ReadKey returns a key as the store has it, and true; or, where the store is out of reach,
// as this node knows it, and false. One that this node does not know then is no key that
// there is not: that is fault.Unavailable.
func (s *Service) ReadKey(ctx context.Context, ref string) (k *Key, fresh bool, err error) {
	l, err := s.serving()
	if err != nil {
		return nil, false, err
	}
	switch err := s.readKey(ctx, l, ref); {
	case errors.Is(err, keystore.ErrUnavailable):
	case errors.Is(err, keystore.ErrNotFound):
		return nil, true, noKey(ref)
	case err != nil:
		return nil, false, err
	default:
		fresh = true
	}
	k, err = s.FindKey(ref)
	if err != nil && !fresh {
		err = s.unknown(err)
	}
	return k, fresh, err
}

// unknown is what is said of something that is not in memory while the store is out of
// reach: somebody else may have made it.
func (s *Service) unknown(err error) error {
	return fault.New(fault.Unavailable, "%v; but the key store is out of reach, and it may be there: try again when the store answers", err)
}

func (s *Service) readKey(ctx context.Context, l *loaded, ref string) (err error) {
	index, isIndex := parseIndex(ref)
	if !isIndex {
		if index, err = s.readName(ctx, ref); err != nil {
			return err
		}
	}
	return s.read(ctx, l, keyEntry(index))
}

// readName returns the index that has a name.
func (s *Service) readName(ctx context.Context, name string) (uint32, error) {
	if !keyName.MatchString(name) {
		return 0, keystore.ErrNotFound
	}
	r, err := s.get(ctx, namePrefix+name)
	if err != nil {
		return 0, err
	}
	var index uint32
	return index, r.Decode(&index)
}

// ReadApp is for an app what ReadKey is for a key.
func (s *Service) ReadApp(ctx context.Context, name string) (app *auth.App, fresh bool, err error) {
	l, err := s.serving()
	if err != nil {
		return nil, false, err
	}
	err = s.read(ctx, l, auth.Entry(name))
	if err != nil && !errors.Is(err, keystore.ErrUnavailable) && !errors.Is(err, keystore.ErrNotFound) {
		return nil, false, err
	}
	fresh = !errors.Is(err, keystore.ErrUnavailable)
	app, err = l.apps.Find(name)
	if err != nil && !fresh {
		err = s.unknown(err)
	}
	return app, fresh, err
}

// get reads a record. A store that is known to be away is not waited for.
func (s *Service) get(ctx context.Context, name string) (record.Record, error) {
	if s.Degraded() != nil {
		return record.Record{}, keystore.ErrUnavailable
	}
	return s.keep.Get(ctx, name)
}

// read takes a record in as it is now.
func (s *Service) read(ctx context.Context, l *loaded, name string) error {
	r, err := s.get(ctx, name)
	if err != nil {
		return err
	}
	return s.apply(ctx, l, record.Event{Record: r})
}
