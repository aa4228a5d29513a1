package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/trikey/trikey/keystore"
)

// Get returns the entry of that name.
func (s *Store) Get(ctx context.Context, name string) (e keystore.Entry, err error) {
	if name == "" { // the prefix alone is no entry
		return e, keystore.ErrNotFound
	}
	err = s.call(ctx, func(ctx context.Context) error {
		r, err := s.client.Get(ctx, s.cfg.Prefix+name)
		if err == nil && len(r.Kvs) > 0 {
			e = s.entry(r.Kvs[0])
		}
		return err
	})
	if err == nil && e.Revision == 0 {
		err = keystore.ErrNotFound
	}
	return e, err
}

func (s *Store) entry(kv *mvccpb.KeyValue) keystore.Entry {
	return keystore.Entry{Name: string(kv.Key[len(s.cfg.Prefix):]), Value: kv.Value, Revision: kv.ModRevision}
}

// Txn applies all writes if all comparisons hold.
func (s *Store) Txn(ctx context.Context, compares []keystore.Compare, writes []keystore.Write) (int64, error) {
	if err := keystore.CheckTxn(compares, writes); err != nil {
		return 0, err
	}
	conditions := make([]clientv3.Cmp, len(compares))
	for i, c := range compares {
		conditions[i] = clientv3.Compare(clientv3.ModRevision(s.cfg.Prefix+c.Name), "=", c.Revision)
	}
	ops := make([]clientv3.Op, len(writes), len(writes)+1)
	for i, w := range writes {
		if w.Delete {
			ops[i] = clientv3.OpDelete(s.cfg.Prefix + w.Name)
		} else {
			ops[i] = clientv3.OpPut(s.cfg.Prefix+w.Name, string(w.Value))
		}
	}
	if len(ops) == 0 {
		// A transaction without any operation counts as one that may be answered from
		// a member's own state; one that reads does not.
		ops = append(ops, clientv3.OpGet(s.cfg.Prefix, clientv3.WithCountOnly()))
	}
	var revision int64
	err := s.call(ctx, func(ctx context.Context) error {
		r, err := s.client.Txn(ctx).If(conditions...).Then(ops...).Commit()
		switch {
		case err != nil:
			return err
		case r.Succeeded:
			revision = r.Header.Revision
		}
		return nil
	})
	if err == nil && revision == 0 {
		err = keystore.ErrConflict
	}
	return revision, err
}

// Snapshot reads every entry at one revision.
func (s *Store) Snapshot(ctx context.Context, f func([]keystore.Write) error) (revision int64, err error) {
	from, end := s.cfg.Prefix, clientv3.GetPrefixRangeEnd(s.cfg.Prefix)
	for {
		var r *clientv3.GetResponse
		err := s.call(ctx, func(ctx context.Context) (err error) {
			r, err = s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(chunk))
			return err
		})
		if err != nil {
			return 0, err
		}
		if revision == 0 {
			revision = r.Header.Revision
		}
		writes := make([]keystore.Write, len(r.Kvs))
		for i, kv := range r.Kvs {
			writes[i] = keystore.Write{Name: s.entry(kv).Name, Value: kv.Value}
		}
		if len(writes) > 0 {
			if err := f(writes); err != nil {
				return 0, err
			}
		}
		if !r.More {
			return revision, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// chunk bounds the entries that one answer of etcd carries.
const chunk = 500

// List returns entries in order of their names.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) ([]keystore.Entry, int64, error) {
	if limit < 1 {
		return nil, 0, fmt.Errorf("keystore: list of %d entries", limit)
	}
	for {
		list, revision, err := s.list(ctx, prefix, after, limit)
		// A revision compacted between two chunks: only a list of today has all.
		if !errors.Is(err, keystore.ErrCompacted) {
			return list, revision, err
		}
	}
}

// list reads in chunks, all at the revision of the first.
func (s *Store) list(ctx context.Context, prefix, after string, limit int) (list []keystore.Entry, revision int64, err error) {
	full := s.cfg.Prefix + prefix
	from, end := full, clientv3.GetPrefixRangeEnd(full)
	if after != "" {
		from = max(from, s.cfg.Prefix+after+"\x00") // the next name there can be
	}
	for {
		want := min(limit-len(list), chunk)
		var r *clientv3.GetResponse
		if from >= end {
			// There is nothing; but the revision is asked for.
			from, want = s.cfg.Prefix, 0
		}
		err := s.call(ctx, func(ctx context.Context) (err error) {
			options := []clientv3.OpOption{clientv3.WithRev(revision), clientv3.WithLimit(int64(want))}
			if want == 0 {
				options = append(options, clientv3.WithCountOnly())
			} else {
				options = append(options, clientv3.WithRange(end))
			}
			r, err = s.client.Get(ctx, from, options...)
			return err
		})
		if err != nil {
			return nil, 0, err
		}
		if revision == 0 {
			revision = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			list = append(list, s.entry(kv))
		}
		if !r.More || len(list) >= limit {
			return list, revision, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}
