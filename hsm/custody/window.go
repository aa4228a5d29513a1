package custody

import (
	"context"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/submit"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// maxRefused is how many submissions a window refuses before it closes. Custodians
// check their cards before they send: whoever sends more bad ones is none.
const maxRefused = 10

// window is the submission window that is open.
type window struct {
	hsm.Window // Have is told when it is shown
	key        *submit.Key
	refused    int
	watched    *time.Timer // closes it when nobody watches
}

// closed says why a window closed.
type closed struct {
	id  hsm.ID
	why string
}

var (
	_ hsm.Windows     = (*Desk)(nil)
	_ hsm.Submissions = (*Desk)(nil)
)

// show publishes the window, if there is one.
func (w *window) show(s *shown) {
	if w == nil {
		return
	}
	public := w.Window
	public.Have = s.have
	s.window, s.watched = &public, w.watched
}

// OpenWindow opens a submission window, with a key of its own.
func (d *Desk) OpenWindow(ctx context.Context) (hsm.Window, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.cfg.Remote {
		return hsm.Window{}, fault.New(fault.BadConfig, "this machine takes no shares from elsewhere: give machine.custodians.listen "+
			"an address in its configuration, and start it again")
	}
	if err := d.mayCollect(ctx); err != nil {
		return hsm.Window{}, err
	}
	key, err := submit.NewKey()
	if err != nil {
		return hsm.Window{}, err
	}
	d.closeWindow("another window took its place")
	m := d.record.Manifest
	w := &window{key: key, Window: hsm.Window{
		ID: hsm.NewID(), MachineID: m.MachineID, SplitID: m.SplitID, Need: int(m.Threshold), PublicKey: key.Public(),
	}}
	w.watched = time.AfterFunc(d.cfg.Watch, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.window == w {
			d.closeWindow("nobody watched it any more")
		}
	})
	d.window = w
	d.wait()
	d.show()
	return d.Window(ctx)
}

// Window returns the window that is open. It does not wait for a card that is being
// read.
func (d *Desk) Window(context.Context) (hsm.Window, error) {
	d.published.Lock()
	defer d.published.Unlock()
	if d.shown.window == nil {
		return hsm.Window{}, fault.New(fault.NoWindow, "this machine does not wait for cards from elsewhere; ask for a submission window "+
			"to be opened there (trikey machine unseal --remote)")
	}
	return *d.shown.window, nil
}

// WatchWindow tells how far a window is, and that somebody watches it.
func (d *Desk) WatchWindow(_ context.Context, id hsm.ID) (hsm.Window, error) {
	d.published.Lock()
	defer d.published.Unlock()
	if err := d.checkWindow(id); err != nil {
		return hsm.Window{}, err
	}
	d.shown.watched.Reset(d.cfg.Watch)
	return *d.shown.window, nil
}

// checkWindow reports why the window of that id takes nothing. The caller holds
// published.
func (d *Desk) checkWindow(id hsm.ID) error {
	switch {
	case d.shown.window != nil && d.shown.window.ID == id:
		return nil
	case d.shown.closed.id == id && d.shown.closed.why != "":
		return fault.New(fault.NoWindow, "the submission window is closed, since %s; where the machine is still sealed, open another one "+
			"there (trikey machine unseal --remote) and compare its fingerprint anew", d.shown.closed.why)
	}
	return fault.New(fault.NoWindow, "the submission window is closed, and another may be open; begin again, and compare the fingerprint anew")
}

// CloseWindow closes a window.
func (d *Desk) CloseWindow(_ context.Context, id hsm.ID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.window == nil || d.window.ID != id {
		d.published.Lock()
		defer d.published.Unlock()
		return d.checkWindow(id)
	}
	d.closeWindow("the people at the machine closed it")
	return nil
}

// closeWindow closes the window that is open, if there is one, and forgets its key.
// The caller holds mu.
func (d *Desk) closeWindow(why string) {
	if d.window == nil {
		return
	}
	d.window.watched.Stop()
	d.window.key.Wipe()
	d.published.Lock()
	d.shown.closed = closed{d.window.ID, why}
	d.published.Unlock()
	d.window = nil
	d.show()
}

// Submit gives a share that a custodian elsewhere has sent to the unsealing.
func (d *Desk) Submit(ctx context.Context, in hsm.Submission) (hsm.Receipt, error) {
	d.published.Lock()
	err := d.checkWindow(in.Window) // before it waits for a card that is being read
	d.published.Unlock()
	if err == nil {
		// On a stack that is burnt afterwards, as in Present.
		err = secret.Scrub(func() error { return d.submit(ctx, in) })
	}
	if err != nil {
		return hsm.Receipt{}, err
	}
	s, err := d.Status(ctx)
	return hsm.Receipt{State: s.State, Have: s.Have, Need: s.Need}, err
}

func (d *Desk) submit(ctx context.Context, in hsm.Submission) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.window
	if w == nil || w.ID != in.Window {
		d.published.Lock()
		defer d.published.Unlock()
		return d.checkWindow(in.Window)
	}
	if err := d.mayCollect(ctx); err != nil {
		return err
	}
	card, share, err := d.receive(w, in.Sealed)
	if err == nil {
		err = d.take(ctx, card, share)
	}
	if err == nil || d.window == nil { // where the machine could not be opened, it is not the custodian's fault
		d.cfg.Log.InfoContext(ctx, "a share came from elsewhere", "window", w.ID, "share", share.Index, "serial", card.Serial)
		return err
	}
	if w.refused++; w.refused == maxRefused {
		d.cfg.Log.WarnContext(ctx, "the submission window was closed: too many submissions were refused; "+
			"find out who reaches machine.custodians.listen before another is opened", "window", w.ID, "refused", w.refused, "last", err)
		d.closeWindow("too many submissions were refused")
	}
	return err
}

// receive opens a submission, and checks the share in it as readShare checks that on a
// card. The card is the one that was dealt this share. The caller holds mu.
func (d *Desk) receive(w *window, sealed []byte) (card hsm.CardID, share *hsm.Share, err error) {
	envelope, err := w.key.Open(w.Window, sealed)
	if err != nil {
		return card, nil, err
	}
	defer envelope.Wipe()
	if share, err = hsm.ParseShare(envelope); err != nil {
		return card, nil, err
	}
	if err = share.Check(&d.record.Manifest); err == nil {
		for _, c := range d.record.Cards {
			if c.Index == share.Index {
				card = hsm.CardID{Serial: c.Serial, Label: c.Label}
			}
		}
		err = d.repeated(card)
	}
	if err != nil {
		share.Value.Wipe()
		return card, nil, err
	}
	return card, share, nil
}
