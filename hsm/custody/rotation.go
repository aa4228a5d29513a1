package custody

import (
	"context"
	"os"
	"path/filepath"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
)

// rotationFile has the record that will be the machine's when the rotation under way
// has switched the key store.
const rotationFile = "rotation.json"

func readRotation(dir string) (*hsm.Record, error) {
	var r hsm.Record
	found, err := durable.Read(filepath.Join(dir, rotationFile), &r)
	if err != nil || !found {
		return nil, err
	}
	return &r, nil
}

// settleRotation decides, when the machine starts, what became of a rotation that was
// interrupted: the key store knows whether it has switched.
func (d *Desk) settleRotation(ctx context.Context) error {
	next, err := readRotation(d.cfg.Dir)
	if err != nil || next == nil || d.cfg.Service == nil {
		return err
	}
	root, err := d.cfg.Service.Root(ctx)
	if err != nil || root != next.RootID {
		return err // not switched: the cards before count, and it can be taken up again
	}
	return d.putRecord(next)
}

// resumeRotation takes up a rotation that was interrupted after its cards were dealt:
// they are verified anew.
func (d *Desk) resumeRotation(_ context.Context, c *ceremony) error {
	next, err := readRotation(d.cfg.Dir)
	if err != nil {
		return err
	}
	if !c.plan.Resume {
		if next != nil {
			c.leftover = append(c.leftover, next.SplitID)
		}
		return nil
	}
	if next == nil || next.Generation != d.record.Generation+1 {
		return fault.New(fault.NoCeremony, "no rotation was interrupted after its cards were dealt; begin one without --resume")
	}
	c.manifest = &next.Manifest
	c.plan.Shares, c.plan.Threshold = int(next.Shares), int(next.Threshold)
	for _, card := range next.Cards {
		c.dealt = append(c.dealt, dealt{id: hsm.CardID{Serial: card.Serial, Label: card.Label}})
	}
	return nil
}

// rotate opens the next root beside the machine's own and has the service move to it.
// Once the key store has switched, the rotation counts.
func (d *Desk) rotate(ctx context.Context, c *ceremony, record *hsm.Record) error {
	s, err := d.cfg.Engine.Status(ctx)
	switch {
	case err != nil:
		return err
	case s.State != hsm.Open:
		return fault.New(fault.Sealed, "the machine was sealed meanwhile; unseal it with the cards before, then rotate-root --resume")
	case s.RootID == record.RootID:
		return nil // switched already, by a commit that failed after it
	}
	if err := durable.Write(d.cfg.Dir, rotationFile, record); err != nil {
		return err
	}
	failpoint.Hit("rotation-written")
	root, err := rebuild(c.dealtQuorum(0))
	if err != nil {
		return err
	}
	defer root.Wipe()
	if err := d.cfg.Engine.OpenNext(ctx, hsm.Root{Manifest: record.Manifest, Key: root}); err != nil {
		return err
	}
	promote := func(ctx context.Context) error {
		failpoint.Hit("switched")
		return d.cfg.Engine.Promote(ctx)
	}
	if d.cfg.Service == nil {
		err = promote(ctx)
	} else {
		err = d.cfg.Service.RotateRoot(ctx, record.Manifest, promote, func(done, total int) {
			c.done, c.total = done, total
			d.show()
			failpoint.Hit("copying")
		})
	}
	if err != nil {
		if now, statusErr := d.cfg.Engine.Status(ctx); statusErr == nil && now.RootID != record.RootID {
			_ = d.cfg.Engine.DropNext(ctx)
		}
		return err
	}
	return d.keepWarm(ctx, hsm.Root{Manifest: record.Manifest, Key: root})
}

// dropRotation forgets an interrupted rotation, because its cards are dealt anew.
func (d *Desk) dropRotation() { _ = os.Remove(filepath.Join(d.cfg.Dir, rotationFile)) }
