// Package kms is the key-management service: business keys by index and name,
// the apps that may use them, and the data plane that seals with them.
//
// The service stands between callers and a machine (hsm.Machine). It knows which
// wrapped key an index has and who may use it; it never sees a key. Its own
// records are sealed by the machine (kms/record), so that it can do nothing, not
// even recognise an app, until the machine is open and Load has read them.
//
// It serves from an index in memory, which follows the store's watch: other
// nodes' changes arrive there as its own do. While the store is away the service goes on
// with what it knows, refuses changes, and says so (Degraded); when it is back, it goes on
// from the revision it has seen.
package kms

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/activity"
	"github.com/trikey/trikey/kms/alert"
	"github.com/trikey/trikey/kms/approval"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/epochs"
	"github.com/trikey/trikey/kms/lease"
	"github.com/trikey/trikey/kms/limit"
	"github.com/trikey/trikey/kms/nonce"
	"github.com/trikey/trikey/kms/people"
	"github.com/trikey/trikey/kms/record"
	"github.com/trikey/trikey/kms/token"
)

// Config is what a service needs.
type Config struct {
	Machine hsm.Machine
	Store   keystore.Store
	Log     *slog.Logger     // slog.Default when nil
	Now     func() time.Time // time.Now when nil

	// Loaded is told, each time that every record was read, how many changes the store
	// has seen: a number that becomes less shows that the whole store was put back.
	Loaded func(keys, apps int, changes uint64)

	// Record runs f, which rotates or destroys of a key what is due, and has it recorded
	// before and after; when it cannot be recorded f is not run. nil just runs f.
	Record func(ctx context.Context, op string, index uint32, f func() error) error
	// StoreCheck is how often the service looks whether the store answers, and tries
	// again where it did not; one second when zero.
	StoreCheck time.Duration

	// Limits are what callers are held to; nil are none.
	Limits *limit.Limits

	// Alert is told what is unusual of an app; nil is told nothing. UnusualRate is how
	// many times its mean an app's rate must be for that, 0 for never; it may change.
	Alert       func(alert.Alert)
	UnusualRate *atomic.Int64

	// Signer signs certificates of destruction. Without one nothing is destroyed.
	Signer Signer

	// Epochs is the directory of the file of destruction keys. Without one wrapped keys
	// are stored as the machine made them, and old copies of the store open for ever.
	Epochs string

	// Host tells what a backup has besides the records; nil: none can be made.
	Host func(ctx context.Context) (BackupHost, error)
	// Scratch makes a store in a directory for a drill; nil: there are no drills.
	Scratch func(dir string) (keystore.Store, error)
	// Idle leaves undone what is due of keys: the service shows what there is.
	Idle bool

	Tokens token.Config // without an issuer there are no tokens

	// TendEvery is how often the service looks what is due of keys, and writes the
	// counts of operations; one minute when zero.
	TendEvery time.Duration
}

// Service is the key-management service. Unload or Close ends the goroutines that
// Load starts; Close also the one that looks after the store.
type Service struct {
	cfg   Config
	keep  *record.Keeper
	lease *lease.Lease // of the steward

	followers sync.WaitGroup // goroutines that follow the store, and stewards

	health health
	people *people.Registry

	erasing sync.Mutex   // guards epochs
	epochs  *epochs.Keys // nil while sealed

	mu     sync.RWMutex       // guards all below
	loaded *loaded            // nil until Load
	why    error              // why it is not loaded
	await  context.CancelFunc // ends the goroutine that waits for the store to Load from; nil when there is none
}

// loaded is what exists only while the machine is open.
type loaded struct {
	keys     *keyIndex
	apps     *auth.Apps
	ranges   ranges
	tokens   *token.Authority
	nonces   *nonce.Ledger
	epochs   *epochs.Keys              // nil where none are configured
	backedUp atomic.Pointer[time.Time] // when the newest backup was made; nil: never

	owed sync.Map // indexes of keys of which something is still to be erased

	spending *spending
	activity *activity.Tracker
	alert    func(alert.Alert)

	stop context.CancelFunc // ends the watch and the steward
	done chan struct{}      // closed when the watch has ended
	left chan struct{}      // closed when the steward has

	exhausted chan exhausted // versions to be rotated because of their count
	keep      chan struct{}  // calls the goroutine that keeps house; holds one
}

// New returns a service that has not loaded anything.
func New(cfg Config) *Service {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Record == nil {
		cfg.Record = func(_ context.Context, _ string, _ uint32, f func() error) error { return f() }
	}
	if cfg.Alert == nil {
		cfg.Alert = func(alert.Alert) {}
	}
	if cfg.UnusualRate == nil {
		cfg.UnusualRate = new(atomic.Int64)
	}
	if cfg.StoreCheck == 0 {
		cfg.StoreCheck = time.Second
	}
	if cfg.TendEvery == 0 {
		cfg.TendEvery = time.Minute
	}
	cfg.Tokens = cfg.Tokens.Filled()
	s := &Service{
		cfg: cfg, keep: &record.Keeper{Machine: cfg.Machine, Store: cfg.Store}, why: errSealed,
		lease: &lease.Lease{Store: cfg.Store, Name: leaseEntry, Holder: hsm.NewID().String(), TTL: leaseTTL, Now: cfg.Now},
	}
	s.people = people.New(s.keep, cfg.Now)
	s.health.start(s)
	return s
}

var errSealed = fault.New(fault.Sealed, "the machine is sealed: its key cards must be given first (trikey machine unseal)")

// Load reads every record and begins to serve. A record that was altered is
// refused by name, and nothing is served. Where the store does not answer, Load says so,
// and serving begins by itself when it does.
func (s *Service) Load(ctx context.Context) error {
	s.Unload()
	l, err := s.load(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.cfg.Log.Error("the key store cannot be served", "error", err)
		s.why = fault.New(fault.Unavailable, "the key store cannot be served: %v", err)
		if errors.Is(err, keystore.ErrUnavailable) {
			s.awaitStore()
		}
		return err
	}
	s.loaded, s.why = l, nil
	if changes, err := s.keep.Changes(ctx); err == nil && s.cfg.Loaded != nil {
		s.cfg.Loaded(l.keys.len(), l.apps.Len(), changes)
	}
	s.cfg.Log.Info("serving", "keys", l.keys.len(), "apps", l.apps.Len())
	return nil
}

func (s *Service) load(ctx context.Context) (*loaded, error) {
	if err := s.keep.Attach(ctx); err != nil {
		return nil, err
	}
	if err := s.checkSplit(ctx); err != nil {
		return nil, err
	}
	if err := s.purgeLeft(ctx); err != nil {
		return nil, err
	}
	verified := make(chan error, 1)
	go func() { verified <- s.keep.Verify(ctx) }()
	l, found, from, err := s.readAll(ctx)
	// What was read is of use only if it is what was written.
	err = errors.Join(<-verified, err)
	if err == nil {
		err = s.openDestruction(ctx, l, found)
	}
	if err != nil {
		if l != nil {
			l.apps.Wipe()
		}
		return nil, err
	}
	l.nonces = nonce.New(s.cfg.Store, hsm.NewID().String(), s.cfg.Now)
	used, err := l.nonces.Load(ctx)
	if err != nil {
		l.apps.Wipe()
		return nil, err
	}
	follow, stop := context.WithCancel(context.Background())
	l.stop = stop
	s.followers.Go(func() { l.nonces.Run(follow, used, s.cfg.StoreCheck) })
	s.followers.Go(func() { s.follow(follow, l, from) })
	s.followers.Go(func() {
		defer close(l.left)
		if !s.cfg.Idle {
			s.keepHouse(follow, l)
		}
	})
	return l, nil
}

// readAll reads every record that is served from memory, and returns the revision from which
// their changes are to be followed.
func (s *Service) readAll(ctx context.Context) (*loaded, *left, int64, error) {
	l := &loaded{done: make(chan struct{}), left: make(chan struct{}), exhausted: make(chan exhausted, 64)}
	l.keys = newKeyIndex(l.unlock)
	l.spending, l.keep = newSpending(), make(chan struct{}, 1)
	l.alert, l.activity = s.cfg.Alert, activity.New(s.cfg.Alert, s.cfg.UnusualRate)
	l.apps = auth.New(s.keep, s.cfg.Now, l.keys.grantable)
	l.tokens = token.New(s.cfg.Tokens, &tokenKeys{s, l}, s.keep, s.cfg.Now)
	found := &left{}
	from, err := s.loadKeys(ctx, l, found)
	if err != nil {
		return nil, nil, 0, err
	}
	for _, part := range []struct {
		prefix string
		apply  func(record.Record) error
	}{
		{auth.Prefix, l.apps.Apply},
		{usePrefix, l.keys.applyUse},
		{rangesRecord, l.ranges.apply},
		{backupsRecord, l.applyBackup},
		{token.Prefix, l.tokens.Apply},
		{suspensionPrefix, l.spending.apply},
		{activity.Prefix, l.applyHabits},
		{people.Prefix, onlyOpen},
		{approval.Prefix, onlyOpen},
		{censusPrefix, onlyOpen},
	} {
		revision, err := s.keep.Load(ctx, part.prefix, part.apply)
		if err != nil {
			return nil, nil, 0, err
		}
		from = min(from, revision)
	}
	return l, found, from, nil
}

// onlyOpen is for records that are read each time they are asked for: that one of them was
// altered is known at once, and not only then. Names of keys and certificates of destruction
// are too many for that; what they are used for opens them.
func onlyOpen(r record.Record) error {
	clear(r.Content)
	return nil
}

// apply takes a change in.
func (s *Service) apply(ctx context.Context, l *loaded, e record.Event) error {
	apply, remove := func(r record.Record) error { return s.applyKey(ctx, l, r) }, l.keys.remove
	switch {
	case strings.HasPrefix(e.Name, keyPrefix):
	case strings.HasPrefix(e.Name, auth.Prefix):
		apply, remove = l.apps.Apply, l.apps.Remove
	case strings.HasPrefix(e.Name, token.Prefix):
		apply, remove = l.tokens.Apply, l.tokens.Remove
	case strings.HasPrefix(e.Name, usePrefix) && !e.Deleted:
		apply = l.keys.applyUse
	case e.Name == backupsRecord && !e.Deleted:
		apply = l.applyBackup
	case strings.HasPrefix(e.Name, suspensionPrefix):
		apply, remove = l.spending.apply, l.spending.remove
	case strings.HasPrefix(e.Name, activity.Prefix) && !e.Deleted:
		apply = l.applyHabits
	case e.Name == rangesRecord && !e.Deleted:
		apply = l.ranges.apply
	default:
		return nil
	}
	if e.Deleted {
		remove(e.Name, e.Entry)
		return nil
	}
	return apply(e.Record)
}

// applyKey takes a key in that was changed here or by another node. What that one has
// destroyed is erased here too.
func (s *Service) applyKey(ctx context.Context, l *loaded, r record.Record) error {
	k, err := parseKey(r)
	if err != nil {
		return err
	}
	var before []hsm.WrappedKey
	if len(k.destroyed()) > 0 {
		if old := l.keys.peek(k.Index); old != nil && old.revision < k.revision {
			for _, v := range old.Versions {
				if v.Wrapped != "" && k.gone(v.Version) {
					before = append(before, v.Wrapped)
				}
			}
		}
	}
	l.keys.store(k, r.Content)
	if len(before) == 0 {
		return nil
	}
	if err := s.erase(ctx, l, k, before); err != nil {
		s.cfg.Log.Error("a destroyed key version is not erased here yet; it is tried again", "index", k.Index, "error", err)
	}
	return nil
}

// Unload forgets every record, before the machine is sealed.
func (s *Service) Unload() {
	s.mu.Lock()
	l := s.loaded
	s.loaded, s.why = nil, errSealed
	if s.await != nil {
		s.await()
		s.await = nil
	}
	s.mu.Unlock()
	if l != nil {
		l.stop()
		<-l.done
		<-l.left
		l.apps.Wipe()
	}
	s.closeEpochs()
	s.people.EndAll()
}

// Close ends the service. The store and the machine stay their openers'.
func (s *Service) Close() error {
	s.Unload()
	s.followers.Wait()
	s.health.close()
	return nil
}

// Ready reports why the service cannot answer calls, nil when it can.
func (s *Service) Ready(ctx context.Context) error {
	if _, err := s.serving(); err != nil {
		return err
	}
	status, err := s.cfg.Machine.Status(ctx)
	switch {
	case err != nil:
		return err
	case status.State != hsm.Open:
		return errSealed
	}
	// A store that does not answer leaves the service what it can do from memory.
	if err := s.health.check(ctx); !errors.Is(err, keystore.ErrUnavailable) {
		return err
	}
	return nil
}

// CheckRecords opens every record of the key store anew, and returns how many there are,
// or names the first that somebody else has touched.
func (s *Service) CheckRecords(ctx context.Context) (records int, err error) {
	if _, err := s.serving(); err != nil {
		return 0, err
	}
	if err := s.keep.Verify(ctx); err != nil {
		return 0, err
	}
	_, err = s.keep.Load(ctx, "", func(r record.Record) error {
		clear(r.Content) // some are secrets of apps
		records++
		return nil
	})
	return records, err
}

// Degraded reports what the service cannot do although it is ready, nil when it can do
// everything: while the store is away, calls are answered from memory and changes are
// refused.
func (s *Service) Degraded() error { return s.health.degraded() }

func (s *Service) serving() (*loaded, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.loaded, s.why
}

// ClaimNonce uses a nonce of an app, which on all nodes nobody can use again for ten
// minutes: kms/nonce.
func (s *Service) ClaimNonce(ctx context.Context, appKey, value string) error {
	l, err := s.serving()
	if err != nil {
		return err
	}
	return l.nonces.Claim(ctx, appKey, value)
}

// Apps returns the registry of apps.
func (s *Service) Apps() (*auth.Apps, error) {
	l, err := s.serving()
	if err != nil {
		return nil, err
	}
	return l.apps, nil
}
