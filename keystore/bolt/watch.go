package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/trikey/trikey/keystore"
)

func eventKey(revision int64, i int) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, uint64(revision)), uint32(i))
}

func eventValue(w keystore.Write) []byte {
	var deleted byte
	if w.Delete {
		deleted = 1
	}
	b := binary.BigEndian.AppendUint16([]byte{deleted}, uint16(len(w.Name)))
	return append(append(b, w.Name...), w.Value...)
}

// splitEvent finds the parts of an event in the file's pages.
func splitEvent(k, v []byte) (name, value []byte, err error) {
	if len(k) != 12 || len(v) < 3 || v[0] > 1 || len(v) < 3+int(binary.BigEndian.Uint16(v[1:])) {
		return nil, nil, errors.New("an event of the history is not readable")
	}
	end := 3 + int(binary.BigEndian.Uint16(v[1:]))
	return v[3:end], v[end:], nil
}

func parseEvent(k, v []byte) (e keystore.Event, err error) {
	name, value, err := splitEvent(k, v)
	if err != nil {
		return e, err
	}
	e.Entry = keystore.Entry{Name: string(name), Revision: int64(binary.BigEndian.Uint64(k))}
	if e.Deleted = v[0] == 1; !e.Deleted {
		e.Value = bytes.Clone(value)
	}
	return e, nil
}

// maxEvents bounds the events that a watch reads in one go; a transaction is
// never cut.
const maxEvents = 1000

// Watch calls f with the events of each transaction after from.
func (s *Store) Watch(ctx context.Context, prefix string, from int64, f func([]keystore.Event) error) error {
	advance, end := s.watch(from)
	defer end()
	for {
		// Take the signal before looking, so that no change falls between.
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		events, to, err := s.eventsAfter(ctx, from)
		if err != nil {
			return err
		}
		if err := deliver(events, prefix, f); err != nil {
			return err
		}
		if to > from {
			from = to
			advance(to)
			continue
		}
		select {
		case <-changed:
		case <-s.closed:
			return keystore.ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// deliver calls f once for each transaction that has an event under the prefix.
func deliver(events []keystore.Event, prefix string, f func([]keystore.Event) error) error {
	for len(events) > 0 {
		n := 0
		var touched []keystore.Event
		for n < len(events) && events[n].Revision == events[0].Revision {
			if strings.HasPrefix(events[n].Name, prefix) {
				touched = append(touched, events[n])
			}
			n++
		}
		if events = events[n:]; len(touched) == 0 {
			continue
		}
		if err := f(touched); err != nil {
			return err
		}
	}
	return nil
}

// eventsAfter reads the history after a revision, and says up to which revision it
// has read.
func (s *Store) eventsAfter(ctx context.Context, from int64) (events []keystore.Event, to int64, err error) {
	to = from
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		if from < number(tx, compactedKey) {
			return keystore.ErrCompacted
		}
		c := tx.Bucket(historyBucket).Cursor()
		for k, v := c.Seek(eventKey(from+1, 0)); k != nil; k, v = c.Next() {
			e, err := parseEvent(k, v)
			if err != nil {
				return s.damaged(err)
			}
			if len(events) >= maxEvents && e.Revision != to {
				return nil
			}
			events = append(events, e)
			to = e.Revision
		}
		return nil
	})
	return events, to, err
}

// announce wakes the watches.
func (s *Store) announce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}
