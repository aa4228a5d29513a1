package kms

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/policy"
	"github.com/trikey/trikey/kms/record"
)

// rangesRecord has all reserved ranges of key indexes.
const rangesRecord = "key-ranges"

// Reservation keeps a range of key indexes for one app: only keys that it owns can be
// made there.
type Reservation struct {
	policy.Range
	App string `json:"app"`
}

// reservations is the content of the record.
type reservations struct {
	Ranges []Reservation `json:"ranges"` // in order, without overlaps
}

// maxReservations bounds the record.
const maxReservations = 10_000

// ranges are the reservations in memory.
type ranges struct {
	mu       sync.RWMutex // guards all below
	revision int64
	list     []Reservation
}

func (x *ranges) apply(r record.Record) error {
	var stored reservations
	if err := r.Decode(&stored); err != nil {
		return err
	}
	x.put(stored.Ranges, r.Entry)
	return nil
}

func (x *ranges) put(list []Reservation, revision int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if revision > x.revision {
		x.list, x.revision = list, revision
	}
}

func (x *ranges) all() []Reservation {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Clone(x.list)
}

// of returns the app that an index is reserved for, "" when it is not.
func (x *ranges) of(index uint32) string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, r := range x.list {
		if r.From <= index && index <= r.To {
			return r.App
		}
	}
	return ""
}

// next returns the lowest index from there on that is not reserved for anybody but the
// app; 0 when there is none.
func (x *ranges) next(index uint32, app string) uint32 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, r := range x.list {
		if index != 0 && r.From <= index && index <= r.To && r.App != app {
			index = r.To + 1 // 0 after the last
		}
	}
	return index
}

// Reservations returns the reserved ranges in order.
func (s *Service) Reservations() ([]Reservation, error) {
	l, err := s.serving()
	if err != nil {
		return nil, err
	}
	return l.ranges.all(), nil
}

// Reserve keeps a range for an app. Keys that are there already must be its own.
func (s *Service) Reserve(ctx context.Context, who Actor, r Reservation) error {
	l, err := s.serving()
	if err != nil {
		return err
	}
	if r.From == 0 || r.From > r.To {
		return fault.New(fault.BadRequest, "range: from %d to %d is not a range of key indexes, which begin at 1", r.From, r.To)
	}
	if _, err := l.apps.Find(r.App); err != nil {
		return err
	}
	if k := l.keys.foreign(r); k != nil {
		return fault.New(fault.Conflict, "key %d is in that range and does not belong to %q; reserve around it, or give it that owner (trikey key update %d --owner %s)",
			k.Index, r.App, k.Index, r.App)
	}
	return s.changeRanges(ctx, who, l, "key indexes reserved", r, func(all []Reservation) ([]Reservation, error) {
		for _, other := range all {
			if r.From <= other.To && other.From <= r.To {
				return nil, fault.New(fault.Conflict, "%s is reserved for %q already; give that up first", policy.Ranges{other.Range}, other.App)
			}
		}
		if len(all) >= maxReservations {
			return nil, fault.New(fault.TooLarge, "there are %d reserved ranges already, the most there can be", len(all))
		}
		all = append(all, r)
		slices.SortFunc(all, func(a, b Reservation) int { return int(int64(a.From) - int64(b.From)) })
		return all, nil
	})
}

// Unreserve gives a reserved range up, as it was reserved. Keys in it keep their owner.
func (s *Service) Unreserve(ctx context.Context, who Actor, r policy.Range) error {
	l, err := s.serving()
	if err != nil {
		return err
	}
	return s.changeRanges(ctx, who, l, "key indexes given up", Reservation{Range: r}, func(all []Reservation) ([]Reservation, error) {
		at := slices.IndexFunc(all, func(o Reservation) bool { return o.Range == r })
		if at < 0 {
			return nil, fault.New(fault.NotFound, "%s is not a reserved range; trikey key reserve shows those there are", policy.Ranges{r})
		}
		return slices.Delete(all, at, at+1), nil
	})
}

func (s *Service) changeRanges(ctx context.Context, who Actor, l *loaded, what string, r Reservation, f func([]Reservation) ([]Reservation, error)) error {
	for {
		var stored reservations
		old, err := s.keep.Get(ctx, rangesRecord)
		switch {
		case errors.Is(err, keystore.ErrNotFound):
			old = record.Record{Name: rangesRecord}
		case err != nil:
			return err
		default:
			if err := old.Decode(&stored); err != nil {
				return err
			}
		}
		if stored.Ranges, err = f(stored.Ranges); err != nil {
			return err
		}
		content, err := record.JSON(stored)
		if err != nil {
			return err
		}
		revision, err := s.keep.Apply(ctx, record.Replace(old, content))
		if errors.Is(err, keystore.ErrConflict) || errors.Is(err, record.ErrRotated) {
			continue
		}
		if err == nil {
			l.ranges.put(stored.Ranges, revision)
			s.cfg.Log.Info(what, "by", who, "range", policy.Ranges{r.Range}.String(), "app", r.App)
		}
		return err
	}
}

// grantable reports whether an app may be given grants: a key that another app owns
// cannot be granted.
func (x *keyIndex) grantable(app string, g policy.Grants) error {
	x.mu.RLock()
	defer x.mu.RUnlock()
	lowest := uint32(0)
	for index, owner := range x.owned {
		if owner != app && g.Sees(index) && (lowest == 0 || index < lowest) {
			lowest = index
		}
	}
	if lowest == 0 {
		return nil
	}
	return fault.New(fault.Forbidden, "key %d belongs to the app %q and cannot be granted to another; grant ranges that leave it out", lowest, x.owned[lowest])
}
