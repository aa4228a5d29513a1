package custody

import (
	"context"
	"crypto/subtle"
	"errors"
	"os"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// awaited is the request to join that the machine has made. Nothing of it is on the disk:
// when the process is gone, no grant for it opens any more.
type awaited struct {
	hsm.JoinRequest
	receiver hsm.Receiver
	expires  *time.Timer
}

var errNoJoin = fault.New(fault.BadConfig, "machine.join is off: this machine neither gives its root key to another nor takes one without cards; "+
	"set it to approve in the configuration and start the machine again, or give the cards (trikey machine adopt, trikey machine unseal)")

// mayJoin reports why the machine cannot be given a root by a peer now. The caller holds
// mu.
func (d *Desk) mayJoin(ctx context.Context) error {
	switch s, err := d.cfg.Engine.Status(ctx); {
	case err != nil:
		return err
	case !d.cfg.Join:
		return errNoJoin
	case s.State == hsm.Open:
		return fault.New(fault.MachineOpen, "the machine is open already: it needs no root key from a peer")
	case d.ceremony != nil:
		return fault.New(fault.Conflict, "a ceremony is under way at this machine; finish or abort it first")
	}
	return d.checkDestroying(nil)
}

// RequestJoin has the chip make a key pair for one transport of the root.
func (d *Desk) RequestJoin(ctx context.Context) (hsm.JoinRequest, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var r hsm.JoinRequest
	if err := d.mayJoin(ctx); err != nil {
		return r, err
	}
	id, err := d.identity(ctx)
	if err != nil {
		return r, err
	}
	receiver, err := d.cfg.Chip.NewReceiver(ctx)
	if err != nil {
		return r, err
	}
	host, _ := os.Hostname()
	now := d.cfg.Now().UTC()
	r = hsm.JoinRequest{
		ID: hsm.NewID(), Region: d.cfg.Region, Host: host, Issued: now, Expires: now.Add(hsm.JoinLife), TransportKey: receiver.Public(),
		Signature: hsm.Signature{PublicKey: id.PublicKey, Fingerprint: hsm.Fingerprint(id.PublicKey)},
	}
	message, err := r.Message()
	if err == nil {
		r.Signature, err = d.signWith(ctx, id, hsm.JoinRequestContext, message)
	}
	if err != nil {
		return hsm.JoinRequest{}, errors.Join(err, receiver.Close())
	}
	d.dropAwaited()
	a := &awaited{JoinRequest: r, receiver: receiver}
	a.expires = time.AfterFunc(hsm.JoinLife, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.awaited == a {
			d.dropAwaited()
		}
	})
	d.awaited = a
	failpoint.Hit("join-requested")
	return r, nil
}

// dropAwaited makes the request void: its key is destroyed in the chip. The caller holds
// mu.
func (d *Desk) dropAwaited() {
	if d.awaited == nil {
		return
	}
	d.awaited.expires.Stop()
	if err := d.awaited.receiver.Close(); err != nil {
		d.cfg.Log.Error("the chip did not forget the key of a request to join; it does when this process ends: start the machine again",
			"request", d.awaited.ID, "error", err)
	}
	d.awaited = nil
}

// Join opens the machine with a grant. One that is refused changes nothing, and leaves
// the request as it is.
func (d *Desk) Join(ctx context.Context, g hsm.JoinGrant, peer string) (hsm.Status, error) {
	// On a stack that is burnt afterwards.
	if err := secret.Scrub(func() error { return d.join(ctx, g, peer) }); err != nil {
		return hsm.Status{}, err
	}
	return d.Status(ctx)
}

func (d *Desk) join(ctx context.Context, g hsm.JoinGrant, peer string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.mayJoin(ctx); err != nil {
		return err
	}
	if err := d.checkGrant(g, peer); err != nil {
		return err
	}
	key, err := d.receiveRoot(ctx, g)
	if err != nil {
		return err
	}
	defer key.Wipe()
	kcv, err := rootKCV(key)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(kcv), []byte(g.Record.KCV)) != 1 {
		return fault.New(fault.RootMismatch, "the grant holds a root key with check value %s, not %s; nothing was opened: have it granted anew", kcv, g.Record.KCV)
	}
	if err := d.openJoined(ctx, &g.Record, key); err != nil {
		return err
	}
	d.joined = g.Request
	d.dropAwaited()
	d.forget()
	return nil
}

// checkGrant reports why a grant is not for this machine, now. The caller holds mu.
func (d *Desk) checkGrant(g hsm.JoinGrant, peer string) error {
	if err := g.Check(peer); err != nil {
		return err
	}
	switch own := d.fingerprint(); {
	case g.Machine != own:
		return fault.New(fault.FingerprintWrong, "the grant is for the machine with fingerprint %s, this is %s: give it there", g.Machine, own)
	case g.Request == d.joined:
		return fault.New(fault.Replay, "the grant was used already: each is good for one opening; make another request (trikey machine join-request)")
	case !d.cfg.Now().Before(g.Expires):
		return fault.New(fault.JoinExpired, "the grant was good until %s; make another request (trikey machine join-request)", g.Expires.Format(time.RFC3339))
	case d.awaited == nil || d.awaited.ID != g.Request:
		return fault.New(fault.NoCeremony, "this machine waits for no grant of request %s: it was started again since, or has made another request; "+
			"make one (trikey machine join-request) and have that approved", g.Request)
	}
	return d.mayTake(&g.Record)
}

// receiveRoot takes the root out of a grant: the chip unwraps the key that it is sealed
// with, and opens it.
func (d *Desk) receiveRoot(ctx context.Context, g hsm.JoinGrant) (*secret.Bytes, error) {
	aad, err := d.awaited.AAD()
	if err != nil {
		return nil, err
	}
	transport, err := d.awaited.receiver.Receive(ctx, g.Key)
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "the chip does not take the grant; have it granted anew")
	}
	root, err := transport.Open(ctx, g.Nonce, g.Root, aad)
	if errors.Is(err, fault.DecryptFailed) {
		err = fault.New(fault.DecryptFailed, "the root key in the grant does not open: it was sealed for another request; have it granted anew")
	}
	if err = errors.Join(err, transport.Close()); err != nil {
		root.Wipe()
		return nil, err
	}
	return root, nil
}

// openJoined opens the engine and the service, and then has the record count: until that,
// whatever ends the machine leaves it as it was. The caller holds mu.
func (d *Desk) openJoined(ctx context.Context, record *hsm.Record, key *secret.Bytes) error {
	root := hsm.Root{Manifest: record.Manifest, Key: key}
	if err := d.cfg.Engine.Open(ctx, root); err != nil {
		return err
	}
	failpoint.Hit("join-opened")
	var err error
	if d.cfg.Service != nil {
		err = d.cfg.Service.Load(ctx)
	}
	if err == nil {
		err = d.putRecord(record)
	}
	if err != nil {
		return errors.Join(err, d.seal(ctx))
	}
	failpoint.Hit("join-recorded")
	return d.keepWarm(ctx, root)
}
