package kms

import (
	"context"
	"errors"
	"strings"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/record"
)

// splitRecord says which dealing of the root's cards the records belong to.
const splitRecord = "split"

// split is what keeps cards that were replaced from opening the records, even where the
// machine's own record was put back to an older one.
type split struct {
	ID     hsm.ID `json:"id"`
	Before hsm.ID `json:"before,omitzero"` // counts too, while the machine changes over
}

// checkSplit compares the dealing that opened the machine with that of the records.
func (s *Service) checkSplit(ctx context.Context) error {
	status, err := s.cfg.Machine.Status(ctx)
	if err != nil {
		return err
	}
	for {
		var stored split
		r, err := s.keep.Get(ctx, splitRecord)
		if err == nil {
			err = r.Decode(&stored)
		}
		switch {
		case errors.Is(err, keystore.ErrNotFound):
		case err != nil:
			return err
		case status.SplitID == stored.ID && stored.Before == (hsm.ID{}):
			return nil
		case status.SplitID != stored.ID && status.SplitID != stored.Before:
			return fault.New(fault.CardSuperseded, "the machine was opened with cards of split %s, but the key store's cards are of split %s: "+
				"an older machine.json was put back, or the store is of another time; bring back the machine.json that belongs to the store",
				status.SplitID, stored.ID)
		}
		content, err := record.JSON(split{ID: status.SplitID})
		if err != nil {
			return err
		}
		r.Name = splitRecord
		if _, err = s.keep.Apply(ctx, record.Replace(r, content)); !errors.Is(err, keystore.ErrConflict) {
			return err
		}
	}
}

// Resplit prepares the records for cards of a new split: until Resplit is called again
// with the same split, those of the old one count too.
func (s *Service) Resplit(ctx context.Context, id hsm.ID) error {
	if _, err := s.serving(); err != nil {
		return err
	}
	_, _, err := record.Update(ctx, s.keep, splitRecord, func(c *split) error {
		if c.ID == id {
			c.Before = hsm.ID{}
		} else {
			*c = split{ID: id, Before: c.ID}
		}
		return nil
	})
	return err
}

// Root tells which root the key store's records are of; zero where it has none.
func (s *Service) Root(ctx context.Context) (hsm.ID, error) { return record.RootOf(ctx, s.cfg.Store) }

// RotateRoot moves every record to the machine's next root and then calls promote,
// which has the machine give up the old one. Calls are served all the while; changes
// wait for a moment at the end.
func (s *Service) RotateRoot(ctx context.Context, next hsm.Manifest, promote func(context.Context) error, progress func(done, total int)) (err error) {
	l, err := s.serving()
	if err != nil {
		return err
	}
	// Whichever root counts after a death in between, the destruction keys open with it.
	if l.epochs != nil {
		before := s.keep.Generation()
		if err := l.epochs.SealUnder(ctx, before, next.Generation); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, l.epochs.SealUnder(context.WithoutCancel(ctx), s.keep.Generation())) }()
	}
	err = s.keep.Rotate(ctx, record.Rotation{
		Generation: next.Generation, RootID: next.RootID, Progress: progress,
		Convert: func(ctx context.Context, records []record.Record) error { return s.rewrap(ctx, l, records, next) },
		Switched: func(ctx context.Context, records []record.Record) error {
			for _, r := range records {
				if err := s.apply(ctx, l, record.Event{Record: r}); err != nil {
					return err
				}
			}
			return promote(ctx)
		},
	})
	if err == nil {
		s.cfg.Log.Info("root key rotated", "generation", next.Generation, "kcv", next.KCV, "keys", l.keys.len())
	}
	return err
}

// rewrap has the machine wrap the keys in records under the next root.
func (s *Service) rewrap(ctx context.Context, l *loaded, records []record.Record, next hsm.Manifest) error {
	keys := map[int]*Key{}
	var ops []hsm.Op
	for i, r := range records {
		switch {
		case r.Name == splitRecord:
			content, err := record.JSON(split{ID: next.SplitID})
			if err != nil {
				return err
			}
			records[i].Content = content
		case strings.HasPrefix(r.Name, keyPrefix):
			k, err := parseKey(r)
			if err == nil {
				err = l.unlock(k)
			}
			if err == nil {
				err = k.check(r.Name)
			}
			if err != nil {
				return err
			}
			keys[i] = k
			for _, v := range k.Versions {
				if v.Wrapped == "" { // destroyed
					continue
				}
				ops = append(ops, hsm.Op{Kind: hsm.Rewrap, Key: v.Wrapped, Generation: next.Generation})
			}
		}
	}
	if err := s.cfg.Machine.Do(ctx, ops); err != nil {
		return err
	}
	at := 0
	for i := range records {
		k := keys[i]
		if k == nil {
			continue
		}
		for v := range k.Versions {
			if k.Versions[v].Wrapped == "" {
				continue
			}
			if ops[at].Err != nil {
				return ops[at].Err
			}
			k.Versions[v].Wrapped = hsm.WrappedKey(ops[at].Output)
			at++
		}
		content, err := l.content(k)
		if err != nil {
			return err
		}
		records[i].Content = content
	}
	return nil
}
