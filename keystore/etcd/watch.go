package etcd

import (
	"context"
	"errors"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/trikey/trikey/keystore"
)

// Watch calls f with the events of each transaction after from. The client library
// resumes by itself, after the last event that it has delivered, when a member or the
// connection fails.
func (s *Store) Watch(ctx context.Context, prefix string, from int64, f func([]keystore.Event) error) error {
	bound, cancel := s.bind(ctx)
	defer cancel()
	// A member cut off from the others ends the watch, rather than to keep silent.
	watch := s.client.Watch(clientv3.WithRequireLeader(bound), s.cfg.Prefix+prefix,
		clientv3.WithPrefix(), clientv3.WithRev(from+1), clientv3.WithCreatedNotify())
	for r := range watch {
		if err := r.Err(); err != nil {
			return s.translate(ctx, err)
		}
		if r.Created {
			if err := s.kept(ctx, from); err != nil {
				return err
			}
		}
		if err := s.deliver(r.Events, f); err != nil {
			return err
		}
	}
	return s.translate(ctx, errors.New("the watch has ended"))
}

// kept makes sure that history since from is there. etcd watches from the revision that it
// was compacted at, although it has forgotten what that one deleted
// (etcd issues 18089 and 19179).
func (s *Store) kept(ctx context.Context, from int64) error {
	if from == 0 { // the beginning; a watch from revision 1 finds out itself
		return nil
	}
	return s.call(ctx, func(ctx context.Context) error {
		_, err := s.client.Get(ctx, s.cfg.Prefix, clientv3.WithRev(from), clientv3.WithCountOnly())
		return err
	})
}

// deliver calls f once for each transaction. One answer holds many of them, each whole.
func (s *Store) deliver(events []*clientv3.Event, f func([]keystore.Event) error) error {
	for len(events) > 0 {
		var txn []keystore.Event
		for _, e := range events {
			if e.Kv.ModRevision != events[0].Kv.ModRevision {
				break
			}
			txn = append(txn, keystore.Event{Entry: s.entry(e.Kv), Deleted: e.Type == clientv3.EventTypeDelete})
		}
		events = events[len(txn):]
		if err := f(txn); err != nil {
			return err
		}
	}
	return nil
}
