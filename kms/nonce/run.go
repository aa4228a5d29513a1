package nonce

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trikey/trikey/keystore"
)

// page is how many entries are read at a time.
const page = 1000

// Load reads which nonces were used, and returns the revision to Run from.
func (l *Ledger) Load(ctx context.Context) (from int64, err error) {
	for after, first := "", true; ; first = false {
		entries, revision, err := l.Store.List(ctx, Prefix, after, page)
		if err != nil {
			return 0, err
		}
		if first {
			from = revision
		}
		l.mu.Lock()
		l.age()
		for _, e := range entries {
			l.take(e)
		}
		l.mu.Unlock()
		if len(entries) < page {
			return from, nil
		}
		after = entries[len(entries)-1].Name
	}
}

// Run follows the store from a revision and decides claims, until ctx ends.
func (l *Ledger) Run(ctx context.Context, from int64, retry time.Duration) {
	var writer sync.WaitGroup
	writer.Go(func() { l.write(ctx) })
	defer func() {
		writer.Wait()
		l.close()
	}()
	for {
		err := l.Store.Watch(ctx, Prefix, from, func(events []keystore.Event) error {
			l.land(events)
			from = events[0].Revision
			return nil
		})
		if ctx.Err() != nil || errors.Is(err, keystore.ErrClosed) {
			return
		}
		slog.WarnContext(ctx, "following the nonces of signed requests again", "revision", from, "why", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
		if errors.Is(err, keystore.ErrCompacted) {
			if again, err := l.Load(ctx); err == nil {
				from = again
				l.drop() // in which order its claims came is not known any more
			}
		}
	}
}

// take remembers an entry and what is in it. The caller holds mu.
func (l *Ledger) take(e keystore.Entry) {
	begun, digests := parse(e.Value)
	l.entries[e.Name] = begun
	for ; len(digests) >= digestSize; digests = digests[digestSize:] {
		l.add(digest(binary.BigEndian.Uint64(digests)))
	}
}

// land takes a transaction in, in the order of all nodes'. If it is our own, its claims
// are decided.
func (l *Ledger) land(events []keystore.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.age()
	for _, e := range events {
		switch {
		case e.Deleted:
			delete(l.entries, e.Name)
		case l.flight != nil && l.flight.entry == e.Name:
			begun, _ := parse(e.Value)
			l.entries[e.Name] = begun
			for _, c := range l.flight.claims {
				if l.add(c.digest) {
					c.result <- nil
				} else {
					c.result <- errReplay
				}
			}
			close(l.flight.landed)
			l.flight = nil
		default:
			l.take(e.Entry)
		}
	}
}

// drop fails the transaction under way.
func (l *Ledger) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flight == nil {
		return
	}
	for _, c := range l.flight.claims {
		c.result <- errAway
	}
	close(l.flight.landed)
	l.flight = nil
}

// close fails every claim, now and later.
func (l *Ledger) close() {
	l.drop()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, c := range l.waiting {
		c.result <- errAway
	}
	l.waiting = nil
}

// digestSize is that of a digest in an entry, after the time at which the entry was begun.
const digestSize = 8

func parse(value []byte) (begun time.Time, digests []byte) {
	if len(value) < 8 {
		return time.Time{}, nil
	}
	return time.Unix(int64(binary.BigEndian.Uint64(value)), 0), value[8:]
}

// open is the entry that the next claims are added to.
type open struct {
	number uint64
	name   string
	value  []byte
	begun  time.Time
}

// room makes an entry with room for n more digests.
func (o *open) room(n int, holder string, now time.Time) {
	if o.name != "" && len(o.value)/digestSize-1+n <= maxRewritten && now.Sub(o.begun) < slice {
		return
	}
	o.number++
	o.name, o.begun = Prefix+holder+"/"+strconv.FormatUint(o.number, 10), now
	o.value = binary.BigEndian.AppendUint64(nil, uint64(now.Unix()))
}

// write writes claims, one transaction at a time: those that come meanwhile make the next.
func (l *Ledger) write(ctx context.Context) {
	tidy := time.NewTicker(slice)
	defer tidy.Stop()
	var entry open
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-tidy.C:
		}
		for l.writeOnce(ctx, &entry) {
		}
	}
}

// writeOnce writes what waits, and reports whether there may be more.
func (l *Ledger) writeOnce(ctx context.Context, entry *open) bool {
	l.mu.Lock()
	n := min(len(l.waiting), maxClaims)
	f := &flight{claims: l.waiting[:n:n], landed: make(chan struct{})}
	l.waiting = l.waiting[n:]
	now := l.Now()
	writes := l.expired(now)
	if n > 0 {
		entry.room(n, l.Holder, now)
		for _, c := range f.claims {
			entry.value = binary.BigEndian.AppendUint64(entry.value, uint64(c.digest))
		}
		f.entry, l.flight = entry.name, f
		writes = append(writes, keystore.Write{Name: entry.name, Value: entry.value})
	}
	l.mu.Unlock()
	if len(writes) == 0 {
		return false
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := l.Store.Txn(limited, nil, writes)
	if err != nil || n == 0 {
		// It may have been written all the same: what comes next is not added to it.
		l.drop()
		entry.name = ""
		return n > 0 && ctx.Err() == nil
	}
	select {
	case <-f.landed:
	case <-limited.Done():
		l.drop()
		entry.name = ""
	}
	return ctx.Err() == nil
}

// maxDeletes bounds how many entries are deleted in a transaction.
const maxDeletes = 64

// expired returns the deletion of entries whose time is over: our own, and those of nodes
// that have not deleted theirs. The caller holds mu.
func (l *Ledger) expired(now time.Time) (writes []keystore.Write) {
	own := Prefix + l.Holder + "/"
	for name, begun := range l.entries {
		kept := Remembered + slice // the last was added to it a slice after the first
		if !strings.HasPrefix(name, own) {
			kept += Remembered
		}
		if now.Sub(begun) > kept {
			writes = append(writes, keystore.Write{Name: name, Delete: true})
			delete(l.entries, name)
		}
		if len(writes) == maxDeletes {
			break
		}
	}
	return writes
}
