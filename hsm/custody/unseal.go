package custody

import (
	"context"
	"crypto/subtle"
	"errors"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Present gives one card to the unsealing.
func (d *Desk) Present(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (hsm.Status, error) {
	// On a stack that is burnt afterwards: a scan found half a share on the caller's.
	if err := secret.Scrub(func() error { return d.present(ctx, card, pin) }); err != nil {
		return hsm.Status{}, err
	}
	return d.Status(ctx)
}

func (d *Desk) present(ctx context.Context, card hsm.CardID, pin *secret.Bytes) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.mayCollect(ctx); err != nil {
		return err
	}
	if err := d.repeated(card); err != nil {
		return err
	}
	share, err := d.readShare(ctx, card, pin, &d.record.Manifest)
	if err != nil {
		return err
	}
	return d.take(ctx, card, share)
}

// repeated reports that a card was given already. The caller holds mu.
func (d *Desk) repeated(card hsm.CardID) error {
	for _, g := range d.given {
		if g.id.Key() == card.Key() {
			return fault.New(fault.CardRepeated, "card %q (serial %s) was given already; insert another one: %d of %d given",
				card.Label, card.Serial, len(d.given), d.record.Threshold)
		}
	}
	return nil
}

// take gives a share that was read off a card, here or elsewhere, and checked, to the
// unsealing; that which completes the threshold opens the machine. The caller holds mu.
func (d *Desk) take(ctx context.Context, card hsm.CardID, share *hsm.Share) error {
	for _, g := range d.given {
		if g.share.Index == share.Index {
			share.Value.Wipe()
			return fault.New(fault.CardRepeated, "card %q holds share %d, which was given already by another card: it is a copy; "+
				"insert another one", card.Label, share.Index)
		}
	}
	d.given = append(d.given, given{card, share})
	d.wait()
	d.show()
	if len(d.given) < int(d.record.Threshold) {
		return nil
	}
	return d.open(ctx)
}

// mayCollect reports why no card can be given now. The caller holds mu.
func (d *Desk) mayCollect(ctx context.Context) error {
	switch s, err := d.cfg.Engine.Status(ctx); {
	case err != nil:
		return err
	case d.record == nil:
		return errBlank
	case d.ceremony != nil:
		return fault.New(fault.Conflict, "a ceremony is under way at this machine; finish or abort it first")
	case s.State == hsm.Open:
		return fault.New(fault.MachineOpen, "the machine is open already")
	}
	return d.checkDestroying(nil)
}

var errBlank = fault.New(fault.MachineBlank, "the machine is blank: initialise it first (trikey machine init)")

// open rebuilds the root from the cards given and opens the engine. Whatever
// happens, the shares are forgotten. The caller holds mu.
func (d *Desk) open(ctx context.Context) error {
	defer d.forget()
	shares := make([]*hsm.Share, len(d.given))
	for i, g := range d.given {
		shares[i] = g.share
	}
	key, err := rebuild(shares)
	if err != nil {
		return err
	}
	defer key.Wipe()
	defer d.closeWindow("the machine has its cards")
	return d.openWith(ctx, key)
}

// openWith opens the engine and the service. A store that belongs to other cards or
// another root has the machine sealed again; one that is damaged does not: the machine
// is what it was, and the store can be restored under it. The caller holds mu.
func (d *Desk) openWith(ctx context.Context, key *secret.Bytes) error {
	root := hsm.Root{Manifest: d.record.Manifest, Key: key}
	if err := d.cfg.Engine.Open(ctx, root); err != nil {
		return err
	}
	if d.cfg.Service != nil {
		err := d.cfg.Service.Load(ctx)
		if errors.Is(err, fault.CardSuperseded) || errors.Is(err, fault.RootGeneration) {
			return errors.Join(err, d.cfg.Engine.Seal(ctx))
		}
		if err != nil {
			return err
		}
	}
	return d.keepWarm(ctx, root)
}

// rebuild combines checked shares and compares the key check value.
func rebuild(shares []*hsm.Share) (*secret.Bytes, error) {
	key, err := hsm.Rebuild(shares)
	if err != nil {
		return nil, err
	}
	kcv, err := rootKCV(key)
	if err == nil && subtle.ConstantTimeCompare([]byte(kcv), []byte(shares[0].Manifest.KCV)) != 1 {
		err = fault.New(fault.RootMismatch, "the cards rebuild a root key with check value %s, not %s; nothing was opened",
			kcv, shares[0].Manifest.KCV)
	}
	if err != nil {
		key.Wipe()
		return nil, err
	}
	return key, nil
}

func rootKCV(key *secret.Bytes) (kcv string, err error) {
	err = key.Use(func(k []byte) error {
		return secret.Derive(func() (err error) { kcv, err = alg.KCV(k); return err })
	})
	return kcv, err
}
