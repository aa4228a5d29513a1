package custody

import (
	"path/filepath"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
)

const (
	recordFile  = "machine.json"  // the committed record
	pendingFile = "ceremony.json" // dealings that began and did not commit
)

// readRecord returns the machine's record, nil when there is none.
func readRecord(dir string) (*hsm.Record, error) {
	var r hsm.Record
	if found, err := durable.Read(filepath.Join(dir, recordFile), &r); err != nil || !found {
		return nil, err
	}
	if !dealing(&r) {
		return nil, fault.New(fault.RecordDamaged, "%s: does not describe a dealing; restore it from a backup",
			filepath.Join(dir, recordFile))
	}
	return &r, nil
}

// dealing reports whether a record can be one of a dealing.
func dealing(r *hsm.Record) bool {
	return r.Threshold >= 2 && int(r.Shares) == len(r.Commitments) && r.Threshold <= r.Shares && r.KCV != ""
}

// pending lists the dealings that were begun on this machine and never
// committed. A share of one of them is a leftover that may be replaced.
type pending struct {
	Splits []hsm.ID `json:"splits"`
}

func readPending(dir string) (pending, error) {
	var p pending
	_, err := durable.Read(filepath.Join(dir, pendingFile), &p)
	return p, err
}
