package bolt

import (
	"context"

	"github.com/trikey/trikey/keystore"
)

// snapshotPage is how many entries are read at a time.
const snapshotPage = 500

// Snapshot gives pages of entries, each of its moment, and then the changes from the
// moment of the first to that of the last. A single reading transaction would do without
// those, but a slow reader of it keeps pages from being used again and writers from
// growing the file.
func (s *Store) Snapshot(ctx context.Context, f func([]keystore.Write) error) (int64, error) {
	s.history.RLock()
	defer s.history.RUnlock()
	var first, last int64
	for after, more := "", true; more; {
		entries, revision, err := s.List(ctx, "", after, snapshotPage)
		if err != nil {
			return 0, err
		}
		if last = revision; first == 0 {
			first = revision
		}
		if more = len(entries) == snapshotPage; len(entries) == 0 {
			break
		}
		after = entries[len(entries)-1].Name
		writes := make([]keystore.Write, len(entries))
		for i, e := range entries {
			writes[i] = keystore.Write{Name: e.Name, Value: e.Value}
		}
		if err := f(writes); err != nil {
			return 0, err
		}
	}
	for first < last {
		events, to, err := s.eventsAfter(ctx, first)
		if err != nil {
			return 0, err
		}
		var writes []keystore.Write
		for _, e := range events {
			if e.Revision <= last {
				writes = append(writes, keystore.Write{Name: e.Name, Value: e.Value, Delete: e.Deleted})
			}
		}
		if err := f(writes); err != nil {
			return 0, err
		}
		first = to
	}
	return last, nil
}
