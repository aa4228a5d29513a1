// Package lease elects one of the nodes that share a key store: whoever holds an entry
// of the store, for as long as it says. It needs no more of a store than its
// compare-and-swap.
//
// The nodes' clocks must agree better than the lease's length. Where they do not, two
// nodes may both think they hold it for a moment: what they do must bear that, as
// everything does that itself compares and swaps.
package lease

import (
	"context"
	"errors"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/keystore"
)

// Lease is one node's side of an election.
type Lease struct {
	Store  keystore.Store
	Name   string        // of the entry
	Holder string        // this node, unlike any other
	TTL    time.Duration // how long the holder may be silent
	Now    func() time.Time
}

// term is the content of the entry. It is in the clear: whoever may write the store can
// keep a lease from being given, but gains nothing by holding it.
type term struct {
	Holder string    `json:"holder"`
	Until  time.Time `json:"until"`
}

// Hold takes the lease, or renews it, and reports whether this node holds it.
func (l *Lease) Hold(ctx context.Context) (bool, error) {
	e, current, err := l.read(ctx)
	if err != nil {
		return false, err
	}
	now := l.Now()
	// What ends later than any lease may was not written by a node with a good clock.
	taken := current.Until.After(now) && !current.Until.After(now.Add(2*l.TTL))
	if taken && current.Holder != l.Holder {
		return false, nil
	}
	value, err := json.Marshal(term{Holder: l.Holder, Until: now.Add(l.TTL).UTC()})
	if err != nil {
		return false, err
	}
	_, err = l.Store.Txn(ctx, []keystore.Compare{{Name: l.Name, Revision: e.Revision}}, []keystore.Write{{Name: l.Name, Value: value}})
	if errors.Is(err, keystore.ErrConflict) { // another node was faster
		return false, nil
	}
	return err == nil, err
}

// read returns the entry as it is. One that is none, or not readable, is nobody's.
func (l *Lease) read(ctx context.Context) (keystore.Entry, term, error) {
	e, err := l.Store.Get(ctx, l.Name)
	if errors.Is(err, keystore.ErrNotFound) {
		return keystore.Entry{}, term{}, nil
	}
	if err != nil {
		return e, term{}, err
	}
	var current term
	if json.Unmarshal(e.Value, &current) != nil {
		current = term{}
	}
	return e, current, nil
}

// Release gives the lease up, if this node holds it, so that the next one need not wait.
func (l *Lease) Release(ctx context.Context) error {
	e, current, err := l.read(ctx)
	if err != nil || current.Holder != l.Holder {
		return err
	}
	_, err = l.Store.Txn(ctx, []keystore.Compare{{Name: l.Name, Revision: e.Revision}}, []keystore.Write{{Name: l.Name, Delete: true}})
	if errors.Is(err, keystore.ErrConflict) { // it has expired, and is another's
		return nil
	}
	return err
}
