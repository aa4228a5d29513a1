// Package nonce sees to it that a nonce is used once, on all nodes that share a key
// store together and after a restart too.
//
// A claim of a nonce is a line in the store, where all nodes' transactions have one order.
// Each node follows that order by a watch, and a nonce belongs to the claim that comes
// first in it: so all nodes agree, and none answers before it has seen its own claim come
// by. Claims that are made at the same time share a transaction, and cost one.
//
// The entries are in the clear, as those of kms/lease: a digest of a nonce says nothing,
// and whoever may delete them from the store has the nodes that run remember them still.
package nonce

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"strconv"
	"sync"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

// Prefix begins the names of the entries: nonce/HOLDER/N.
const Prefix = "nonce/"

const (
	// slice is the precision with which nonces are forgotten.
	slice = time.Minute
	// Remembered is for how long a nonce is refused, at least: twice the five minutes that a
	// request's time may be off, and one for clocks of nodes that disagree.
	Remembered = 11 * time.Minute

	slices = int(Remembered/slice) + 1

	// defaultMax is Ledger.Max where that is zero.
	defaultMax = 4 << 20
	// maxClaims is how many claims a transaction has at most.
	maxClaims = 256
	// maxRewritten is how many digests an entry may have and still be added to. A new
	// entry for each transaction would be millions in the store, a long one be written
	// too often.
	maxRewritten = 64
	// patience is how long a claim waits for the store.
	patience = 5 * time.Second
)

// digest is that of a nonce and who used it. Two nonces of an app that have the same cost
// it one refusal, once in 10^12 requests; it can neither find nor gain anything by others'.
type digest uint64

func digestOf(app, nonce string) digest {
	sum := sha256.Sum256([]byte(strconv.Itoa(len(app)) + ":" + app + nonce))
	return digest(binary.BigEndian.Uint64(sum[:]))
}

// Ledger is one node's side. Run must be running for claims to be decided.
type Ledger struct {
	Store  keystore.Store
	Holder string // this node, unlike any other
	Now    func() time.Time
	Max    int // nonces in memory, some 25 bytes each; 4 Mi, 6,000 a second, when zero

	wake chan struct{} // there are claims to write

	mu      sync.Mutex                  // guards all below
	known   [slices]map[digest]struct{} // the newest first
	since   time.Time                   // when known[0] was begun
	count   int                         // in all of known
	waiting []*claim                    // not written yet
	flight  *flight                     // written, and not seen yet
	entries map[string]time.Time        // in the store, and when each was begun
	closed  bool
}

// claim is a request that waits for its nonce to be decided.
type claim struct {
	digest digest
	result chan error // has room for the one result
}

// flight is a transaction with claims.
type flight struct {
	entry  string
	claims []*claim
	landed chan struct{} // closed when every claim has its result
}

// New returns a ledger that knows nothing yet.
func New(store keystore.Store, holder string, now func() time.Time) *Ledger {
	return &Ledger{Store: store, Holder: holder, Now: now, wake: make(chan struct{}, 1), since: now(), entries: map[string]time.Time{}}
}

// Claim uses a nonce of an app. Of all claims of the same nonce one succeeds, the others
// are fault.Replay. Where the store does not answer nobody knows: fault.Unavailable.
func (l *Ledger) Claim(ctx context.Context, app, nonce string) error {
	c := &claim{digest: digestOf(app, nonce), result: make(chan error, 1)}
	if err := l.enqueue(c); err != nil {
		return err
	}
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case err := <-c.result:
		return err
	case <-limit.C:
		return errAway
	case <-ctx.Done():
		return ctx.Err()
	}
}

var (
	errReplay = fault.New(fault.Replay, "the nonce was used before; sign each request anew, repetitions too")
	errAway   = fault.New(fault.Unavailable, "the key store does not answer, and without it nobody knows whether the nonce was used on another node; "+
		"call with another kind of credential meanwhile")
	errFull = fault.New(fault.Unavailable, "too many signed requests within %s; call with a token or a client certificate, which need no nonce", Remembered)
)

func (l *Ledger) enqueue(c *claim) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.age()
	switch {
	case l.closed:
		return errAway
	case l.has(c.digest):
		return errReplay
	case l.count >= cmp.Or(l.Max, defaultMax):
		return errFull
	}
	l.waiting = append(l.waiting, c)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// age forgets what is old enough. The caller holds mu.
func (l *Ledger) age() {
	for now := l.Now(); now.Sub(l.since) >= slice; l.since = l.since.Add(slice) {
		if now.Sub(l.since) > 2*Remembered {
			l.since = now.Add(-slice) // after a long silence it forgets one slice at a time too
		}
		l.count -= len(l.known[slices-1])
		copy(l.known[1:], l.known[:slices-1])
		l.known[0] = nil
	}
}

// has reports whether a nonce is known. The caller holds mu.
func (l *Ledger) has(d digest) bool {
	for _, known := range l.known {
		if _, ok := known[d]; ok {
			return true
		}
	}
	return false
}

// add remembers a nonce, and reports whether it is new. The caller holds mu.
func (l *Ledger) add(d digest) bool {
	if l.has(d) {
		return false
	}
	if l.known[0] == nil {
		l.known[0] = map[digest]struct{}{}
	}
	l.known[0][d] = struct{}{}
	l.count++
	return true
}
