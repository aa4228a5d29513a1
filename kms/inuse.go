package kms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/census"
	"github.com/trikey/trikey/kms/record"
)

// censusPrefix is where censuses are that the service was told: key-census/messages.
const censusPrefix = "key-census/"

var censusName = regexp.MustCompile(`^[a-z][a-z0-9._-]{0,62}$`)

// SavedCensus is a census that the service was told: while it finds a key version in use,
// the version's destruction is refused.
type SavedCensus struct {
	Name  string    `json:"name"` // of what was counted; a newer one replaces it
	Saved time.Time `json:"saved"`
	By    Actor     `json:"by"`
	census.Census
}

// CensusOrder is the body of POST /admin/v1/censuses.
type CensusOrder struct {
	Name   string         `json:"name"`
	Census *census.Census `json:"census,omitzero"` // counts from now on
	Remove bool           `json:"remove,omitzero"` // the one of that name counts no more
}

// SaveCensus has a census count from now on, in the place of the one of the same name. One
// that is older than that is refused.
func (s *Service) SaveCensus(ctx context.Context, who Actor, name string, c census.Census) error {
	switch {
	case !censusName.MatchString(name):
		return fault.New(fault.BadRequest, "name: %q is not a small letter followed by at most 62 small letters, digits, dots, dashes or underscores", name)
	case c.Made.IsZero() || c.Made.After(s.now()):
		return fault.New(fault.BadRequest, "census: made at %s, which is not in the past", c.Made.Format(time.RFC3339))
	case !slices.IsSortedFunc(c.Keys, census.Use.Compare):
		return fault.New(fault.BadRequest, "census: its keys are not in the order of index and version; give it as trikey key census made it")
	}
	content, err := record.JSON(SavedCensus{Name: name, Saved: s.now(), By: who, Census: c})
	if err != nil {
		return err
	}
	if len(content) > keystore.MaxValue/2 {
		return fault.New(fault.TooLarge, "census: it lists %d key versions, too many for one record; count fewer files at a time, each part under a name of its own", len(c.Keys))
	}
	return s.changeCensus(ctx, who, "census saved", name, func(old record.Record, before SavedCensus) (record.Change, error) {
		if before.Made.After(c.Made) {
			return record.Change{}, fault.New(fault.Conflict, "census: it was made on %s, but the one of that name on %s; count anew", c.Made.Format(time.RFC3339), before.Made.Format(time.RFC3339))
		}
		return record.Replace(old, content), nil
	})
}

// ForgetCensus has a census count no more.
func (s *Service) ForgetCensus(ctx context.Context, who Actor, name string) error {
	return s.changeCensus(ctx, who, "census forgotten", name, func(old record.Record, _ SavedCensus) (record.Change, error) {
		if old.Entry == 0 {
			return record.Change{}, fault.New(fault.NotFound, "there is no census %q; trikey key censuses lists those there are", name)
		}
		return record.Delete(old), nil
	})
}

func (s *Service) changeCensus(ctx context.Context, who Actor, what, name string, f func(old record.Record, before SavedCensus) (record.Change, error)) error {
	if _, err := s.serving(); err != nil {
		return err
	}
	for {
		var before SavedCensus
		old, err := s.keep.Get(ctx, censusPrefix+name)
		switch {
		case errors.Is(err, keystore.ErrNotFound):
			old = record.Record{Name: censusPrefix + name}
		case err != nil:
			return err
		default:
			if err := old.Decode(&before); err != nil {
				return err
			}
		}
		change, err := f(old, before)
		if err != nil {
			return err
		}
		_, err = s.keep.Apply(ctx, change)
		if errors.Is(err, keystore.ErrConflict) || errors.Is(err, record.ErrRotated) {
			continue
		}
		if err == nil {
			s.cfg.Log.Info(what, "by", who, "name", name)
		}
		return err
	}
}

// Censuses returns the censuses that count, in order of their names.
func (s *Service) Censuses(ctx context.Context) ([]SavedCensus, error) {
	if _, err := s.serving(); err != nil {
		return nil, err
	}
	all := []SavedCensus{}
	_, err := s.keep.Load(ctx, censusPrefix, func(r record.Record) error {
		var c SavedCensus
		err := r.Decode(&c)
		all = append(all, c)
		return err
	})
	return all, err
}

// inUse names what is still under those versions of a key, nil when no census finds
// anything.
func (s *Service) inUse(ctx context.Context, index uint32, versions []uint32) error {
	all, err := s.Censuses(ctx)
	if err != nil {
		return err
	}
	var found []string
	for _, c := range all {
		for _, version := range versions {
			if n := c.Uses(index, version); n > 0 {
				found = append(found, fmt.Sprintf("version %d by %d ciphertexts in %q, counted on %s", version, n, c.Name, c.Made.Format(time.RFC3339)))
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	const most = 5
	more := ""
	if len(found) > most {
		more = fmt.Sprintf(", and %d more", len(found)-most)
	}
	return fault.New(fault.KeyInUse, "key %d is still in use: %s%s; re-encrypt them (trikey key migrate), count anew and save that census", index,
		strings.Join(found[:min(most, len(found))], "; "), more)
}

// mayDestroyUsed decides whether versions may be destroyed although a census finds them in
// use. It is the one place where that is allowed: who must agree to it is to be asked here.
func (s *Service) mayDestroyUsed(who Actor, index uint32, used error, why string) error {
	if !plain(why, maxDescription) {
		return fault.New(fault.BadRequest, "even_if_used: a line of at most %d bytes must say why what is in use may become unreadable", maxDescription)
	}
	s.cfg.Log.Warn("a key is to be destroyed although it is in use", "by", who, "index", index, "why", why, "used", used)
	return nil
}

// checkUse refuses the destruction of versions that are in use, unless the order says why
// they shall be destroyed all the same.
func (s *Service) checkUse(ctx context.Context, who Actor, index uint32, versions []uint32, evenIfUsed string) error {
	used := s.inUse(ctx, index, versions)
	if evenIfUsed == "" || used != nil && !errors.Is(used, fault.KeyInUse) {
		return used
	}
	return s.mayDestroyUsed(who, index, used, evenIfUsed)
}

// destructible returns the versions that an order to destroy is about, all of them for 0.
func (k *Key) destructible(version uint32) (all []uint32) {
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Wrapped != "" && (version == 0 || v.Version == version) {
			all = append(all, v.Version)
		}
	}
	return all
}

// despite is why a version that is in use may be destroyed; "" where nobody has said so.
func (k *Key) despite(v *Version) string { return cmp.Or(v.marks().EvenIfUsed, k.EvenIfUsed) }

// spared reports that a version whose destruction was ordered is not destroyed: a census
// that was saved since then finds it in use. Retention is not an order: that what it
// destroys was in use is its purpose.
func (s *Service) spared(ctx context.Context, k *Key, v *Version, why string) error {
	if !strings.HasPrefix(why, ordered) || k.despite(v) != "" {
		return nil
	}
	return s.inUse(ctx, k.Index, []uint32{v.Version})
}
