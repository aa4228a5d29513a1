package custody

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"slices"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// joining is a request of another machine that some custodians have approved. No share is
// kept: a card only proves that its custodian is there.
type joining struct {
	hsm.JoinRequest
	approved []hsm.CardRecord
}

const (
	// joinSkew is how far apart the clocks of the two machines may be.
	joinSkew = 5 * time.Minute
	// transportNonce is the size of the nonce of AES-GCM (NIST SP 800-38D, section 5.2.1.1).
	transportNonce = 12
)

// ApproveJoin has one custodian approve a request.
func (d *Desk) ApproveJoin(ctx context.Context, r hsm.JoinRequest, confirm string, card hsm.CardID, pin *secret.Bytes) (p hsm.JoinProgress, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.mayApprove(ctx, r, confirm); err != nil {
		return p, err
	}
	j := d.joining
	if j == nil {
		j = &joining{JoinRequest: r}
	}
	index, err := d.approve(ctx, j, card, pin)
	if err != nil {
		return p, err
	}
	j.approved = append(j.approved, hsm.CardRecord{Index: index, Serial: card.Serial, Label: card.Label})
	d.joining = j
	d.wait()
	failpoint.HitNumber("join-approved", len(j.approved))
	p = hsm.JoinProgress{Request: r.ID, Have: len(j.approved), Need: hsm.JoinApprovals}
	if p.Have < p.Need {
		return p, nil
	}
	d.joining = nil // whatever comes: another grant takes two approvals more
	var g hsm.JoinGrant
	if err := secret.Scrub(func() (err error) { g, err = d.grant(ctx, j); return err }); err != nil {
		return hsm.JoinProgress{}, err
	}
	failpoint.Hit("join-granted")
	p.Grant = &g
	return p, nil
}

// mayApprove reports why a request cannot be approved here and now. The caller holds mu.
func (d *Desk) mayApprove(ctx context.Context, r hsm.JoinRequest, confirm string) error {
	switch s, err := d.cfg.Engine.Status(ctx); {
	case err != nil:
		return err
	case !d.cfg.Join:
		return errNoJoin
	case d.record == nil:
		return errBlank
	case s.State != hsm.Open:
		return fault.New(fault.Sealed, "this machine is sealed: only an open one has a root key to give; unseal it, or approve at another")
	case d.ceremony != nil:
		return fault.New(fault.Conflict, "a ceremony is under way at this machine; finish or abort it first")
	}
	if err := d.checkDestroying(nil); err != nil {
		return err
	}
	if err := r.Check(); err != nil {
		return err
	}
	now := d.cfg.Now()
	switch {
	case r.Region != d.cfg.Region:
		return fault.New(fault.WrongRegion, "the new machine is of region %q, this one of %q: a root key never leaves its region", r.Region, d.cfg.Region)
	case r.Fingerprint == d.fingerprint():
		return fault.New(fault.Conflict, "the request is this machine's own: approve it at an open one")
	case !now.Before(r.Expires):
		return fault.New(fault.JoinExpired, "the request was good until %s; have another made (trikey machine join-request), and compare the clocks of the two hosts",
			r.Expires.Format(time.RFC3339))
	case r.Expires.After(now.Add(hsm.JoinLife + joinSkew)):
		return fault.New(fault.BadRequest, "the request is good until %s, longer than the %v that there are; compare the clocks of the two hosts, and have another made",
			r.Expires.Format(time.RFC3339), hsm.JoinLife)
	case d.joining != nil && !d.joining.Same(r):
		return fault.New(fault.Conflict, "request %s of another machine is being approved; finish that first, or end it (trikey machine abort)", d.joining.ID)
	}
	return r.Confirmed(confirm)
}

// approve reads a custodian's card and checks the share on it against the machine's
// record. The share is forgotten at once. The caller holds mu.
func (d *Desk) approve(ctx context.Context, j *joining, card hsm.CardID, pin *secret.Bytes) (index uint8, err error) {
	given := func(same func(hsm.CardRecord) bool) error {
		if !slices.ContainsFunc(j.approved, same) {
			return nil
		}
		return fault.New(fault.CardRepeated, "card %q (serial %s) has approved this already, or is a copy of the one that has: another custodian must, with another card",
			card.Label, card.Serial)
	}
	id := hsm.CardID{Serial: card.Serial, Label: card.Label}
	if err := given(func(c hsm.CardRecord) bool { return hsm.CardID{Serial: c.Serial, Label: c.Label}.Key() == id.Key() }); err != nil {
		return 0, err
	}
	err = secret.Scrub(func() error {
		share, err := d.readShare(ctx, card, pin, &d.record.Manifest)
		if err != nil {
			return err
		}
		index = share.Index
		share.Value.Wipe()
		return nil
	})
	if err != nil {
		return 0, err
	}
	return index, given(func(c hsm.CardRecord) bool { return c.Index == index })
}

// grant seals the root for the chip of the machine that joins. The caller holds mu.
func (d *Desk) grant(ctx context.Context, j *joining) (hsm.JoinGrant, error) {
	g := hsm.JoinGrant{
		Request: j.ID, Machine: j.Fingerprint, Issued: d.cfg.Now().UTC(), Expires: j.Expires, Record: *d.record, Approved: j.approved,
		Nonce: make([]byte, transportNonce),
	}
	_, _ = rand.Read(g.Nonce) // never fails
	if err := d.sealRoot(ctx, j.JoinRequest, &g); err != nil {
		return hsm.JoinGrant{}, err
	}
	id, err := d.identity(ctx)
	if err != nil {
		return hsm.JoinGrant{}, err
	}
	message, err := g.Message()
	if err != nil {
		return hsm.JoinGrant{}, err
	}
	g.Signature, err = d.signWith(ctx, id, hsm.JoinGrantContext, message)
	return g, err
}

// sealRoot has this machine's chip open the root, which is in protected memory from then
// on until the chip has sealed it anew, with a key that only the other chip can unwrap.
func (d *Desk) sealRoot(ctx context.Context, r hsm.JoinRequest, g *hsm.JoinGrant) (err error) {
	aad, err := r.AAD()
	if err != nil {
		return err
	}
	transport, err := secret.Random(hsm.RootSize)
	if err != nil {
		return err
	}
	defer transport.Wipe()
	if g.Key, err = d.cfg.Chip.Send(ctx, r.TransportKey, transport); err != nil {
		return err
	}
	sealing, err := d.cfg.Chip.Load(ctx, transport)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sealing.Close()) }()
	sealed, err := d.cfg.Engine.SealedRoot(ctx)
	if err != nil {
		return err
	}
	root, err := d.cfg.Chip.Open(ctx, sealed)
	if err != nil {
		return fault.Wrap(fault.ChipFault, err, "the chip does not open the root key that it sealed")
	}
	defer root.Wipe()
	kcv, err := rootKCV(root)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(kcv), []byte(d.record.KCV)) != 1 {
		return fault.New(fault.RootMismatch, "the open root key has check value %s, the machine's record %s: seal the machine and open it with its cards", kcv, d.record.KCV)
	}
	g.Root, err = sealing.Seal(ctx, g.Nonce, root, aad)
	return err
}
