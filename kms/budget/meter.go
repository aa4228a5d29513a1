package budget

import (
	"hash/maphash"
	"sync"
	"time"
)

// Meters count what the apps of a process have decrypted today. Conversations are kept
// as 64-bit keyed hashes, under a key that is drawn at the start and never leaves the
// process; no value of a context is stored.
type Meters struct {
	seed maphash.Seed

	mu   sync.Mutex // guards all below
	apps map[string]*meter
}

type meter struct {
	day           time.Time
	items, old    int
	conversations map[uint64]struct{} // at most the budget's number of them
}

// NewMeters returns meters that have counted nothing.
func NewMeters() *Meters { return &Meters{seed: maphash.MakeSeed(), apps: map[string]*meter{}} }

// Opening is what is to be decrypted: the value of the context field that names the
// conversation, and when the key version ceased to seal, zero while it
// does.
type Opening struct {
	Conversation string
	SealedUntil  time.Time
}

// Why is by what a budget was exceeded.
type Why string

// The reasons.
const (
	Within            Why = "" // it was not
	ItemsSpent        Why = "items"
	ConversationSpent Why = "conversations"
	AgeSpent          Why = "age"
)

// Take counts an operation of an app, and says what of its budget does not allow it.
func (m *Meters) Take(app string, b Budget, o Opening, now time.Time) Why {
	var hash uint64
	if b.Conversations != 0 {
		hash = maphash.String(m.seed, o.Conversation)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.apps[app]
	if t == nil {
		t = &meter{}
		m.apps[app] = t
	}
	if day := now.UTC().Truncate(24 * time.Hour); !t.day.Equal(day) {
		*t = meter{day: day}
	}
	if b.Items != 0 && t.items >= b.Items {
		return ItemsSpent
	}
	old := b.older(o.SealedUntil, now)
	if old && t.old >= b.Old {
		return AgeSpent
	}
	if b.Conversations != 0 {
		if _, known := t.conversations[hash]; !known {
			if len(t.conversations) >= b.Conversations {
				return ConversationSpent
			}
			if t.conversations == nil {
				t.conversations = map[uint64]struct{}{}
			}
			t.conversations[hash] = struct{}{}
		}
	}
	t.items++
	if old {
		t.old++
	}
	return Within
}

// Forget begins an app's day anew.
func (m *Meters) Forget(app string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.apps, app)
}

// Spent is what an app has decrypted today in this process.
type Spent struct{ Items, Conversations, Old int }

// Spent returns an app's counts.
func (m *Meters) Spent(app string, now time.Time) Spent {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.apps[app]
	if t == nil || !t.day.Equal(now.UTC().Truncate(24*time.Hour)) {
		return Spent{}
	}
	return Spent{t.items, len(t.conversations), t.old}
}
