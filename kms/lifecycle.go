package kms

import (
	"context"
	"errors"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/record"
)

// Hold is a legal hold: while it lasts, nothing of a key is destroyed.
type Hold struct {
	Since    time.Time `json:"since"`
	By       Actor     `json:"by"`
	Why      string    `json:"why"`
	Released time.Time `json:"released,omitzero"` // it lasts no more
}

// change lets f change a key's record, and stores that.
func (s *Service) change(ctx context.Context, who Actor, index uint32, what string, f func(l *loaded, k *Key) error) (*Key, error) {
	l, err := s.serving()
	if err != nil {
		return nil, err
	}
	k, revision, err := record.Update(ctx, s.keep, keyEntry(index), func(k *Key) error {
		if err := l.unlock(k); err != nil {
			return err
		}
		if err := f(l, k); err != nil {
			return err
		}
		return l.lock(k)
	})
	if errors.Is(err, keystore.ErrNotFound) {
		return nil, noKey(indexRef(index))
	}
	if err == nil {
		err = l.unlock(&k)
	}
	if err != nil {
		return nil, err
	}
	k.revision = revision
	if err := l.keys.put(&k); err != nil {
		return nil, err
	}
	newest := k.Newest()
	s.cfg.Log.Info(what, "by", who, "index", k.Index, "version", newest.Version, "state", k.State(), "kcv", newest.KCV)
	return &k, nil
}

// State is the state that a key is in as a whole: suspended, or that of the newest version
// that is left.
func (k *Key) State() life.State {
	v := k.Current()
	if k.Suspended != nil && v.State != life.Destroyed {
		return life.Suspended
	}
	return v.State
}

// Current returns the newest version that is not destroyed; where all are, the newest.
func (k *Key) Current() *Version {
	for i := len(k.Versions) - 1; i >= 0; i-- {
		if k.Versions[i].State != life.Destroyed {
			return &k.Versions[i]
		}
	}
	return k.Newest()
}

// held reports whether a legal hold lasts.
func (k *Key) held() bool { return k.Hold != nil && k.Hold.Released.IsZero() }

// mark returns the version's marks to be changed. It is called on keys that are not shared
// yet.
func (v *Version) mark() *Marks {
	if v.Marks == nil {
		v.Marks = &Marks{}
	}
	return v.Marks
}

func (v *Version) marks() Marks {
	if v.Marks == nil {
		return Marks{}
	}
	return *v.Marks
}

// Activated is when the version began to seal; zero when it has not yet.
func (v *Version) Activated() time.Time {
	switch at := v.marks().Activated; {
	case v.State == life.PreActive:
		return time.Time{}
	case !at.IsZero():
		return at
	}
	return v.Created
}

// become takes the version to a state and notes when.
func (v *Version) become(to life.State, now time.Time) (err error) {
	if v.State, err = v.State.To(to); err != nil {
		return fault.New(fault.Conflict, "version %d: %v", v.Version, err)
	}
	switch to {
	case life.Deactivated:
		v.mark().Ended = now
	case life.Compromised:
		m := v.mark()
		if m.Compromised = now; m.Ended.IsZero() {
			m.Ended = now
		}
	case life.Destroyed:
		m := v.mark()
		m.Destroyed, m.DestroyAt = now, time.Time{}
		if m.Ended.IsZero() {
			m.Ended = now
		}
	}
	return nil
}

// each applies f to the version of a number, or for 0 to every version that may become to;
// it fails where there is none.
func (k *Key) each(number uint32, to life.State, f func(*Version) error) error {
	if number != 0 {
		v := k.Version(number)
		switch {
		case k.gone(number):
			return gone(k.Index, number)
		case v == nil:
			return fault.New(fault.NotFound, "key %d has no version %d; trikey key show %d lists them", k.Index, number, k.Index)
		}
		return f(v)
	}
	done := false
	for i := range k.Versions {
		if v := &k.Versions[i]; v.State.May(to) {
			if err := f(v); err != nil {
				return err
			}
			done = true
		}
	}
	if !done {
		return fault.New(fault.Conflict, "key %d has no version that can become %s: it is %s", k.Index, to, k.State())
	}
	return nil
}

func gone(index, version uint32) error {
	return fault.New(fault.KeyDestroyed, "version %d of key %d is destroyed (trikey key certificates %d)", version, index, index)
}

// now is the time in records.
func (s *Service) now() time.Time { return s.cfg.Now().UTC() }

// SuspendKey has a whole key refused, for sealing and opening, until it is resumed.
func (s *Service) SuspendKey(ctx context.Context, who Actor, index uint32) (*Key, error) {
	return s.change(ctx, who, index, "key suspended", func(_ *loaded, k *Key) error {
		switch {
		case k.Current().State == life.Destroyed:
			return gone(k.Index, k.Current().Version)
		case k.Suspended != nil:
			return fault.New(fault.Conflict, "key %d is suspended already", k.Index)
		}
		now := s.now()
		k.Suspended = &now
		k.pause()
		return nil
	})
}

// pause suspends the version that seals, if one does.
func (k *Key) pause() {
	for i := range k.Versions {
		if k.Versions[i].State == life.Active {
			k.Versions[i].State = life.Suspended
		}
	}
}

// unpause makes versions active again that nothing keeps suspended.
func (k *Key) unpause() {
	if k.Suspended != nil || k.DestroyAt != nil {
		return
	}
	for i := range k.Versions {
		if v := &k.Versions[i]; v.State == life.Suspended && v.marks().DestroyAt.IsZero() {
			v.State = life.Active
		}
	}
}

// ResumeKey ends a suspension.
func (s *Service) ResumeKey(ctx context.Context, who Actor, index uint32) (*Key, error) {
	return s.change(ctx, who, index, "key resumed", func(_ *loaded, k *Key) error {
		if k.Suspended == nil {
			return fault.New(fault.Conflict, "key %d is not suspended; it is %s", k.Index, k.State())
		}
		k.Suspended = nil
		k.unpause()
		return nil
	})
}

// ActivateKey has a version that was made for later seal from now on.
func (s *Service) ActivateKey(ctx context.Context, who Actor, index uint32) (*Key, error) {
	return s.change(ctx, who, index, "key activated", func(_ *loaded, k *Key) error {
		v := k.Newest()
		if err := v.become(life.Active, s.now()); err != nil {
			return err
		}
		v.mark().Activated = s.now()
		if k.Suspended != nil || k.DestroyAt != nil || !v.marks().DestroyAt.IsZero() {
			return fault.New(fault.KeyDisabled, "key %d is disabled; resume it or cancel its destruction first", k.Index)
		}
		return nil
	})
}

// DeactivateKey has one version, or with 0 the whole key, open but no longer seal. It does
// not come back: the key seals again after RotateKey.
func (s *Service) DeactivateKey(ctx context.Context, who Actor, index, version uint32) (*Key, error) {
	return s.change(ctx, who, index, "key deactivated", func(_ *loaded, k *Key) error {
		return k.each(version, life.Deactivated, func(v *Version) error { return v.become(life.Deactivated, s.now()) })
	})
}

// CompromiseKey notes that one version, or with 0 every version, is no longer secret. What
// it sealed opens only under policy.DecryptCompromised.
func (s *Service) CompromiseKey(ctx context.Context, who Actor, index, version uint32) (*Key, error) {
	return s.change(ctx, who, index, "key compromised", func(_ *loaded, k *Key) error {
		return k.each(version, life.Compromised, func(v *Version) error { return v.become(life.Compromised, s.now()) })
	})
}

// Bounds of the time between the order to destroy and the destruction, in days.
const (
	MinDestroyDays     = 7
	MaxDestroyDays     = 30
	DefaultDestroyDays = 30
)

// ScheduleDestroy orders the destruction of one version, or with 0 of the whole key, in so
// many days. What is to be destroyed is refused until then; CancelDestroy takes the order
// back.
func (s *Service) ScheduleDestroy(ctx context.Context, who Actor, index, version uint32, days int) (*Key, error) {
	return s.OrderDestroy(ctx, who, index, DestroyOrder{Version: version, Days: days})
}

// DestroyOrder is an order to destroy.
type DestroyOrder struct {
	Version uint32 // 0: the whole key
	Days    int

	// EvenIfUsed is why it shall be destroyed though a census finds it in use. Without it
	// such an order is refused (fault.KeyInUse), and one that was given before the
	// census was saved is not carried out.
	EvenIfUsed string
}

// OrderDestroy is ScheduleDestroy with all that an order can say.
func (s *Service) OrderDestroy(ctx context.Context, who Actor, index uint32, order DestroyOrder) (*Key, error) {
	version, days := order.Version, order.Days
	if days < MinDestroyDays || days > MaxDestroyDays {
		return nil, fault.New(fault.BadRequest, "days: %d is not from %d to %d", days, MinDestroyDays, MaxDestroyDays)
	}
	return s.change(ctx, who, index, "destruction of key scheduled", func(_ *loaded, k *Key) error {
		at := s.now().AddDate(0, 0, days)
		switch {
		case k.held():
			return onHold(k)
		case k.DestroyAt != nil:
			return fault.New(fault.Conflict, "key %d is to be destroyed on %s already; cancel that first", k.Index, k.DestroyAt.Format(time.RFC3339))
		}
		if err := s.checkUse(ctx, who, k.Index, k.destructible(version), order.EvenIfUsed); err != nil {
			return err
		}
		if version == 0 {
			if k.Current().State == life.Destroyed {
				return gone(k.Index, k.Current().Version)
			}
			k.DestroyAt, k.EvenIfUsed = &at, order.EvenIfUsed
			k.pause()
			return nil
		}
		return k.each(version, life.Destroyed, func(v *Version) error {
			if d := v.marks().DestroyAt; !d.IsZero() {
				return fault.New(fault.Conflict, "version %d of key %d is to be destroyed on %s already; cancel that first", version, k.Index, d.Format(time.RFC3339))
			}
			v.mark().DestroyAt, v.Marks.EvenIfUsed = at, order.EvenIfUsed
			if v.State == life.Active {
				v.State = life.Suspended
			}
			return nil
		})
	})
}

func onHold(k *Key) error {
	return fault.New(fault.Conflict, "key %d is on legal hold since %s (%s): nothing of it is destroyed until the hold is released (trikey key release %d)",
		k.Index, k.Hold.Since.Format(time.RFC3339), k.Hold.Why, k.Index)
}

// CancelDestroy takes back the order to destroy one version, or with 0 every such order
// about the key. What it was before, it is again.
func (s *Service) CancelDestroy(ctx context.Context, who Actor, index, version uint32) (*Key, error) {
	return s.change(ctx, who, index, "destruction of key cancelled", func(_ *loaded, k *Key) error {
		found := version == 0 && k.DestroyAt != nil
		if found {
			k.DestroyAt, k.EvenIfUsed = nil, ""
		}
		for i := range k.Versions {
			v := &k.Versions[i]
			if (version == 0 || v.Version == version) && !v.marks().DestroyAt.IsZero() {
				v.Marks.DestroyAt, v.Marks.EvenIfUsed = time.Time{}, ""
				found = true
			}
		}
		if !found {
			return fault.New(fault.Conflict, "no such destruction of key %d is scheduled; what is destroyed does not come back", k.Index)
		}
		k.unpause()
		return nil
	})
}

// HoldKey puts a key on legal hold: nothing of it is destroyed until ReleaseKey.
func (s *Service) HoldKey(ctx context.Context, who Actor, index uint32, why string) (*Key, error) {
	if why == "" || !plain(why, maxDescription) {
		return nil, fault.New(fault.BadRequest, "why: a line of at most %d bytes must say what the hold is for, as the case's number", maxDescription)
	}
	return s.change(ctx, who, index, "key put on legal hold", func(_ *loaded, k *Key) error {
		if k.held() {
			return onHold(k)
		}
		k.Hold = &Hold{Since: s.now(), By: who, Why: why}
		return nil
	})
}

// ReleaseKey ends a legal hold. What has been due meanwhile is destroyed soon after.
func (s *Service) ReleaseKey(ctx context.Context, who Actor, index uint32) (*Key, error) {
	return s.change(ctx, who, index, "key released from legal hold", func(_ *loaded, k *Key) error {
		if !k.held() {
			return fault.New(fault.Conflict, "key %d is not on legal hold", k.Index)
		}
		k.Hold.Released = s.now()
		return nil
	})
}
