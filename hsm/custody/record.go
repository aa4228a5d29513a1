package custody

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/safefile"
)

const (
	recordFile  = "machine.json"  // the committed record
	pendingFile = "ceremony.json" // dealings that began and did not commit
)

// readRecord returns the machine's record, nil when there is none.
func readRecord(dir string) (*hsm.Record, error) {
	var r hsm.Record
	if found, err := readJSON(filepath.Join(dir, recordFile), &r); err != nil || !found {
		return nil, err
	}
	if r.Threshold < 2 || int(r.Shares) != len(r.Commitments) || r.Threshold > r.Shares {
		return nil, fault.New(fault.RecordDamaged, "%s: does not describe a dealing; restore it from a backup",
			filepath.Join(dir, recordFile))
	}
	return &r, nil
}

// pending lists the dealings that were begun on this machine and never
// committed. A share of one of them is a leftover that may be replaced.
type pending struct {
	Splits []hsm.ID `json:"splits"`
}

func readPending(dir string) (pending, error) {
	var p pending
	_, err := readJSON(filepath.Join(dir, pendingFile), &p)
	return p, err
}

func readJSON(path string, into any) (found bool, err error) {
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fault.Wrap(fault.RecordDamaged, err, "read %s", path)
	}
	if err := json.Unmarshal(raw, into, json.RejectUnknownMembers(true)); err != nil {
		return false, fault.Wrap(fault.RecordDamaged, err, "%s is damaged; restore it from a backup", path)
	}
	return true, nil
}

// writeJSON replaces a file of dir so that a crash at any moment leaves the old
// content or the new.
func writeJSON(dir, name string, value any) error {
	raw, err := json.Marshal(value, jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	return safefile.Write(dir, name, append(raw, '\n'))
}
