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
	"sync"
	"sync/atomic"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/activity"
	"github.com/trikey/trikey/kms/alert"
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
