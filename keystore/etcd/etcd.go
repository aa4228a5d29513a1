// Package etcd keeps a key store in an etcd v3 cluster, for many nodes.
//
// Each entry is a key of etcd under the store's prefix, and the store's revisions are
// etcd's: all keys of a transaction have its revision as their ModRevision. The revision
// counts other users' transactions too, so that it grows by more than one.
//
// Reads are linearizable: they see every transaction that was acknowledged before they
// began, on whatever node. No call waits longer than Config.Timeout for etcd; where it
// does not answer, or has no quorum, the error is keystore.ErrUnavailable and a
// fault.Unavailable.
//
// What etcd holds is sealed already (kms/record); whoever can write to it can remove
// entries or put older ones back, but cannot read or make any.
package etcd

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/keystore"
)

// Config is what Open needs.
type Config struct {
	Endpoints []string // https://host:port, of every member; http:// on loopback only
	Prefix    string   // of every key; DefaultPrefix when empty

	CA   string // PEM file with what signed etcd's certificates; the system's when empty
	Cert string // PEM file, of this client; empty where etcd asks for none
	Key  string // PEM file; with Cert

	User     string        // empty where etcd asks for none
	Password *secret.Bytes // stays the caller's; the client library keeps a copy in ordinary memory

	Timeout time.Duration // how long one call may wait for etcd, 3 s when zero
}

// DefaultPrefix is the prefix of every key when Config names none.
const DefaultPrefix = "/trikey/"

// maxPrefix keeps a transaction of many long names within etcd's limit of a request.
const maxPrefix = 256

// reconnect is how long a member that is away is left alone. The library's own two minutes
// would have a cluster that is back seem to be away.
var reconnect = backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}

// Store is a key store in etcd.
type Store struct {
	cfg    Config
	client *clientv3.Client

	ended context.Context // until Close
	end   context.CancelFunc
	once  sync.Once
	err   error // of the client's Close
}

var _ keystore.Store = (*Store)(nil)

// Open connects, and makes sure that etcd answers, lets this client read and write under
// the prefix, and takes transactions as large as a store's.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 3 * time.Second
	}
	if p := cfg.Prefix; len(p) > maxPrefix || len(p) < 3 || p[0] != '/' || p[len(p)-1] != '/' {
		return nil, fault.New(fault.BadConfig, "store.prefix: %q is not like /trikey/, of at most %d bytes", p, maxPrefix)
	}
	tlsConfig, err := cfg.tls()
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg}
	s.ended, s.end = context.WithCancel(context.Background())
	client := clientv3.Config{
		Endpoints: cfg.Endpoints, TLS: tlsConfig, Username: cfg.User, DialTimeout: cfg.Timeout,
		// A member that hangs is given up after thirteen seconds; the library allows no less.
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: cfg.Timeout, PermitWithoutStream: true,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: cfg.Timeout})},
		Logger:      zap.NewNop(),
	}
	if cfg.Password != nil {
		err = cfg.Password.Use(func(p []byte) error { client.Password = string(p); return nil })
	}
	if err == nil {
		s.client, err = clientv3.New(client)
	}
	if err != nil {
		err = s.translate(ctx, err)
		s.end()
		return nil, err
	}
	if err := s.probe(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// probe asks for a full transaction that writes nothing, because its condition never
// holds: etcd checks its limits and this user's permissions all the same.
func (s *Store) probe(ctx context.Context) error {
	ops := make([]clientv3.Op, keystore.MaxTxn)
	value := string(make([]byte, keystore.MaxTxnBytes/keystore.MaxTxn))
	for i := range ops {
		ops[i] = clientv3.OpPut(s.cfg.Prefix+strconv.Itoa(i), value)
	}
	never := clientv3.Compare(clientv3.CreateRevision(s.cfg.Prefix), "<", 0)
	if err := s.call(ctx, func(ctx context.Context) error {
		_, err := s.client.Txn(ctx).If(never).Then(ops...).Commit()
		return err
	}); err != nil {
		return err
	}
	_, _, err := s.List(ctx, "", "", 1)
	return err
}

// call runs f within the store's bound, and translates its error.
func (s *Store) call(ctx context.Context, f func(context.Context) error) error {
	bound, cancel := s.bind(ctx)
	defer cancel()
	bound, stop := context.WithTimeout(bound, s.cfg.Timeout)
	defer stop()
	if err := f(bound); err != nil {
		return s.translate(ctx, err)
	}
	return nil
}

// bind makes a context that ends with the store, too.
func (s *Store) bind(ctx context.Context) (context.Context, context.CancelFunc) {
	bound, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ended, cancel)
	return bound, func() { stop(); cancel() }
}

// Close ends all calls and watches with keystore.ErrClosed, and the connections.
func (s *Store) Close() error {
	s.once.Do(func() {
		s.end()
		if err := s.client.Close(); !errors.Is(err, context.Canceled) {
			s.err = err
		}
	})
	return s.err
}
