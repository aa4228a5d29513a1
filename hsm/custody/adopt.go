package custody

import (
	"context"
	"path/filepath"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
)

// Adopt makes the record of another machine this one's, so that the same cards open both:
// a share is bound to the dealing that the record describes, not to the host. A blank
// machine takes any; one that has a record takes a later one of the same root set. The
// caller names the key check value that it saw at the other machine.
//
// A record is public and opens nothing. A forged one is refused by every card, whose own
// manifest must be the same byte for byte.
func (d *Desk) Adopt(ctx context.Context, record hsm.Record, kcv string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.show()
	s, err := d.cfg.Engine.Status(ctx)
	if err != nil {
		return err
	}
	switch {
	case s.State == hsm.Open || d.ceremony != nil || len(d.given) > 0:
		return fault.New(fault.MachineOpen, "the machine is open, or cards are being given; seal it first")
	case record.KCV != kcv:
		return fault.New(fault.RootMismatch, "the record's key check value is %s, not %s; compare with the machine that it comes from", record.KCV, kcv)
	}
	if err := d.checkDestroying(nil); err != nil {
		return err
	}
	if err := d.mayTake(&record); err != nil {
		return err
	}
	if err := d.dropWarm(); err != nil { // of the record before
		return err
	}
	return d.putRecord(&record)
}

// mayTake reports why another machine's record cannot be this one's. The caller holds mu.
func (d *Desk) mayTake(record *hsm.Record) error {
	before := d.record
	switch {
	case !dealing(record):
		return fault.New(fault.RecordDamaged, "the record does not describe a dealing; export it again (trikey machine export-record)")
	case record.Region != d.cfg.Region:
		return fault.New(fault.WrongRegion, "the record is of region %q, this machine of %q: another region's root key is never shared", record.Region, d.cfg.Region)
	case before == nil:
		return nil
	case before.MachineID != record.MachineID:
		return fault.New(fault.MachineInitialised, "this machine has a root key of its own (check value %s): it adopts no other; use a blank machine", before.KCV)
	case record.Generation < before.Generation || record.Generation == before.Generation && record.Created.Before(before.Created):
		return fault.New(fault.CardOlder, "the record is older than this machine's (generation %d of %s): nothing was changed",
			before.Generation, before.Created.Format("2006-01-02 15:04"))
	}
	return nil
}

// Record returns the public record in a machine's data directory.
func Record(dir string) (hsm.Record, error) {
	var r hsm.Record
	found, err := durable.Read(filepath.Join(dir, recordFile), &r)
	if err == nil && !found {
		err = errBlank
	}
	return r, err
}
