package custody

import (
	"context"
	"crypto/subtle"
	"errors"
	"path/filepath"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// warmFile has the root as the chip encrypts it, where the machine may start without
// cards.
const warmFile = "warm.json"

type warm struct {
	RootID hsm.ID `json:"root_id"`
	Sealed []byte `json:"sealed"`
}

// keepWarm keeps the root for the next start, where that is the policy.
func (d *Desk) keepWarm(ctx context.Context, root hsm.Root) error {
	if !d.cfg.Warm {
		return nil
	}
	sealed, err := d.cfg.Chip.Seal(ctx, root.Key)
	if err != nil {
		return err
	}
	return durable.Write(d.cfg.Dir, warmFile, warm{root.RootID, sealed})
}

// dropWarm removes what would open the machine without cards.
func (d *Desk) dropWarm() error { return durable.Remove(d.cfg.Dir, warmFile) }

// Start opens the machine without cards, where it is its policy to start warm and it
// was open before. Where it is not, whatever would allow that is removed. It reports
// whether the machine was opened.
func (d *Desk) Start(ctx context.Context) (opened bool, err error) {
	err = secret.Scrub(func() (err error) { opened, err = d.start(ctx); return err })
	return opened, err
}

func (d *Desk) start(ctx context.Context) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.show()
	if !d.cfg.Warm {
		return false, d.dropWarm()
	}
	var kept warm
	found, err := durable.Read(filepath.Join(d.cfg.Dir, warmFile), &kept)
	if err != nil || !found || d.record == nil || d.destroying != nil {
		return false, err
	}
	if kept.RootID != d.record.RootID {
		return false, d.dropWarm() // of a root before
	}
	key, err := d.cfg.Chip.Open(ctx, kept.Sealed)
	if errors.Is(err, fault.DecryptFailed) {
		err = fault.New(fault.ChipFault, "the chip does not open %s: it is another chip, or the file was altered; remove the file and start with cards",
			filepath.Join(d.cfg.Dir, warmFile))
	}
	if err != nil {
		return false, err
	}
	defer key.Wipe()
	kcv, err := rootKCV(key)
	if err != nil {
		return false, err
	}
	if subtle.ConstantTimeCompare([]byte(kcv), []byte(d.record.KCV)) != 1 {
		return false, fault.New(fault.RootMismatch, "%s holds a root key with check value %s, not %s; remove it and start with cards",
			filepath.Join(d.cfg.Dir, warmFile), kcv, d.record.KCV)
	}
	return true, d.openWith(ctx, key)
}
