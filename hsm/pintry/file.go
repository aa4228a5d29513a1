package pintry

import (
	"path/filepath"
	"slices"
	"sync"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
)

// FileName is the file of the counts in a machine's data directory.
const FileName = "pin-tries.json"

// entry is the count of one card.
type entry struct {
	Serial string `json:"serial"`
	Label  string `json:"label"`
	Tries  int    `json:"tries"`
}

func (e entry) is(id hsm.CardID) bool { return e.Serial == id.Serial && e.Label == id.Label }

// content is what the file holds: only cards whose last try did not succeed.
type content struct {
	Cards []entry `json:"cards"`
}

// File is a Counter in a file. One process has it at a time; its methods may be called
// concurrently.
type File struct {
	dir string // "" counts in memory only

	mu    sync.Mutex // held while the file is written; guards cards
	cards []entry
}

var _ Counter = (*File)(nil)

// Open returns the counter of a data directory.
func Open(dir string) (*File, error) {
	var c content
	path := filepath.Join(dir, FileName)
	if _, err := durable.Read(path, &c); err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "the count of PIN tries; where there is no backup, "+
			"remove the file and mind that each card may have had %d wrong tries already", hsm.PINTryLimit)
	}
	for _, e := range c.Cards {
		if e.Tries < 1 {
			return nil, fault.New(fault.RecordDamaged, "%s: the card with serial %s has %d tries; correct or remove the file",
				path, e.Serial, e.Tries)
		}
	}
	return &File{dir: dir, cards: c.Cards}, nil
}

// InMemory returns a counter that forgets when the process ends: for readers that do
// not belong to a machine.
func InMemory() *File { return &File{} }

// Used is Counter.Used.
func (f *File) Used(id hsm.CardID) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.find(id); i >= 0 {
		return f.cards[i].Tries
	}
	return 0
}

// Add is Counter.Add.
func (f *File) Add(id hsm.CardID, n int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := slices.Clone(f.cards)
	if i := f.find(id); i >= 0 {
		next[i].Tries += n
	} else {
		next = append(next, entry{id.Serial, id.Label, n})
	}
	return f.write(next)
}

// Clear is Counter.Clear.
func (f *File) Clear(id hsm.CardID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.find(id)
	if i < 0 {
		return nil
	}
	return f.write(slices.Delete(slices.Clone(f.cards), i, i+1))
}

func (f *File) find(id hsm.CardID) int {
	return slices.IndexFunc(f.cards, func(e entry) bool { return e.is(id) })
}

// write makes next the counts. What cannot be written does not count. The caller
// holds mu.
func (f *File) write(next []entry) error {
	if f.dir != "" {
		if err := durable.Write(f.dir, FileName, content{next}); err != nil {
			return err
		}
	}
	f.cards = next
	return nil
}
