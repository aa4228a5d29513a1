package kms

import (
	"context"
	"errors"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/life"
)

// steward is who makes and destroys versions on schedule.
const steward Actor = "steward"

// leaseEntry elects the node whose steward works. It is not a record: it is no secret, and
// changes hands without the machine.
const leaseEntry = "lease/steward"

// leaseTTL is how long others wait for a steward that went away in the middle of its work.
const leaseTTL = 5 * time.Minute

// nextDue is when something of the key becomes due, in Unix nanoseconds; 0 for never. While
// a legal hold lasts what is due is not done.
func (k *Key) nextDue() int64 {
	first := k.Rotates()
	for i := range k.Versions {
		if at := k.DestroysAt(&k.Versions[i]); !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	if first.IsZero() {
		return 0
	}
	return first.UnixNano()
}

// Rotates is when the key is next rotated by its period; zero when it is not.
func (k *Key) Rotates() time.Time {
	// Suspended, deactivated and compromised keys are for people to rotate.
	if v := k.Newest(); v.State == life.Active && k.settings().Rotate != 0 {
		return k.settings().Rotate.After(v.Activated())
	}
	return time.Time{}
}

func (k *Key) rotationDue(now time.Time) bool {
	at := k.Rotates()
	return !at.IsZero() && !now.Before(at)
}

func (k *Key) destructionDue(now time.Time) bool {
	for i := range k.Versions {
		if k.condemned(&k.Versions[i], now) != "" {
			return true
		}
	}
	return false
}

// DestroysAt is when a version is to be destroyed, by order or by retention, unless a
// legal hold prevents it; zero when it is not.
func (k *Key) DestroysAt(v *Version) time.Time {
	if v.State == life.Destroyed {
		return time.Time{}
	}
	first := k.expires(v)
	orders := []time.Time{v.marks().DestroyAt}
	if k.DestroyAt != nil {
		orders = append(orders, *k.DestroyAt)
	}
	for _, at := range orders {
		if !at.IsZero() && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

// Span is a time in which messages were sealed.
type Span struct {
	From, Until time.Time // Until is zero while it goes on
}

// Opens tells when the messages were sealed that a caller with every grant can open now.
func (k *Key) Opens() []Span {
	var spans []Span
	for i := range k.Versions {
		v := &k.Versions[i]
		s := Span{v.Activated(), v.marks().Ended}
		refused := k.Suspended != nil || k.DestroyAt != nil || !v.marks().DestroyAt.IsZero()
		if refused || v.State == life.Destroyed || s.From.IsZero() {
			continue
		}
		if n := len(spans); n > 0 && spans[n-1].Until.Equal(s.From) {
			spans[n-1].Until = s.Until
			continue
		}
		spans = append(spans, s)
	}
	return spans
}

// Tended is what Tend did.
type Tended struct {
	Elected   bool // this node did it; false also where nothing was due
	Rotated   int
	Destroyed int
	Forgotten int // revocations of tokens that have expired
}

// Tend does what is due now: it rotates keys by their period, and destroys versions whose
// retention has ended or whose destruction was ordered, and forgets revocations of tokens
// that have expired. Of several nodes only the elected
// one does. The service calls it by itself, every Config.TendEvery.
func (s *Service) Tend(ctx context.Context) (Tended, error) {
	l, err := s.serving()
	if err != nil {
		return Tended{}, err
	}
	return s.tend(ctx, l)
}

func (s *Service) tend(ctx context.Context, l *loaded) (done Tended, err error) {
	owed := s.settleOwed(ctx, l)
	defer func() {
		if done.Destroyed > 0 {
			owed = errors.Join(owed, s.purge(ctx))
		}
		err = errors.Join(err, owed)
	}()
	for _, k := range l.keys.dueAt(s.now().UnixNano()) {
		if !k.rotationDue(s.now()) && !k.destructionDue(s.now()) {
			continue
		}
		// Renewed for each key, so that it lasts as long as the work.
		var lost error
		if done.Elected, lost = s.lease.Hold(ctx); lost != nil || !done.Elected {
			return done, errors.Join(err, lost)
		}
		if k.rotationDue(s.now()) {
			failed := s.cfg.Record(ctx, "rotate", k.Index, func() error {
				_, err := s.rotate(ctx, steward, k.Index, func(k *Key) bool { return k.rotationDue(s.now()) })
				return err
			})
			if failed == nil {
				done.Rotated++
			} else if !errors.Is(failed, errNotDue) {
				err = errors.Join(err, tending(k, failed))
			}
		}
		if k.destructionDue(s.now()) {
			failed := s.cfg.Record(ctx, "destroy", k.Index, func() error {
				n, err := s.destroyDue(ctx, l, k.Index)
				done.Destroyed += n
				return err
			})
			if failed != nil {
				err = errors.Join(err, tending(k, failed))
			}
		}
		if ctx.Err() != nil {
			return done, err
		}
	}
	forgotten, failed := s.pruneTokens(ctx, l)
	done.Forgotten = forgotten
	return done, errors.Join(err, failed)
}

func tending(k *Key, err error) error {
	return fault.Wrap(fault.CodeOf(err), err, "key %d", k.Index)
}

// askRotation has the steward of this node rotate a key because of its count.
func (l *loaded) askRotation(index uint32, u *versionUse) {
	if u.asked.Load() || !u.asked.CompareAndSwap(false, true) {
		return
	}
	select {
	case l.exhausted <- exhausted{index, u}:
	default:
		u.asked.Store(false) // the next call asks again
	}
}

// exhausted is a version that has sealed as often as its key allows.
type exhausted struct {
	index uint32
	use   *versionUse
}

// rotateExhausted rotates a key, unless somebody has.
func (s *Service) rotateExhausted(ctx context.Context, e exhausted) {
	err := s.cfg.Record(ctx, "rotate", e.index, func() error {
		_, err := s.rotate(ctx, steward, e.index, func(k *Key) bool {
			limit := k.settings().RotateAfter
			v := k.Newest()
			return v.Version == e.use.version && v.State == life.Active && limit != 0 && e.use.seals.total() >= limit
		})
		return err
	})
	if err != nil && !errors.Is(err, errNotDue) {
		s.cfg.Log.Error("a key could not be rotated after its count", "index", e.index, "error", err)
	}
	if err != nil {
		e.use.asked.Store(false) // the next call asks again
	}
}

// lastFlush is how long writing the counts may take when the service ends.
const lastFlush = 5 * time.Second

// keepHouse is the steward's goroutine: it tends keys, rotates those that ask for it, and
// writes the counts of operations.
func (s *Service) keepHouse(ctx context.Context, l *loaded) {
	ticker := time.NewTicker(s.cfg.TendEvery)
	defer ticker.Stop()
	told := reminders{}
	for next := true; ; {
		if next {
			s.remind(l, told)
			done, err := s.tend(ctx, l)
			if err != nil && ctx.Err() == nil {
				s.cfg.Log.Error("what is due was not all done; it is tried again", "rotated", done.Rotated, "destroyed", done.Destroyed, "error", err)
			}
			if err := s.flush(ctx, l); err != nil && ctx.Err() == nil {
				s.cfg.Log.Error("the counts of operations were not written; they are kept for the next time", "error", err)
			}
			l.activity.Look(s.now())
			next = false
		}
		if err := s.flushHabits(ctx, l); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("the addresses and hours of apps were not written; they are kept for the next time", "error", err)
		}
		if err := s.flushSuspensions(ctx, l); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("the suspension of an app was not written; it holds on this node, and is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			s.leaveHouse(l)
			return
		case <-ticker.C:
			next = true
		case <-l.keep:
		case e := <-l.exhausted:
			s.rotateExhausted(ctx, e)
		}
	}
}

// leaveHouse writes the last counts and gives the lease up.
func (s *Service) leaveHouse(l *loaded) {
	ctx, cancel := context.WithTimeout(context.Background(), lastFlush)
	defer cancel()
	if err := errors.Join(s.flush(ctx, l), s.flushHabits(ctx, l), s.flushSuspensions(ctx, l), s.lease.Release(ctx)); err != nil {
		s.cfg.Log.Warn("the last counts of operations were not written", "error", err)
	}
}
