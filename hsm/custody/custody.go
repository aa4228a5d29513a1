// Package custody conducts the ceremonies in which people open a machine: it is
// the hsm.Console of one engine.
//
// It reads cards through an hsm.Reader, checks each share against the machine's
// record before anything is combined, and gives a rebuilt root to an hsm.Engine.
// The record, machine.json in the data directory, is public and says which cards
// the machine has; its absence is what makes a machine blank.
//
// Shares and PINs that a ceremony needs until its end are in protected memory,
// and are wiped when it ends, is aborted, or is left alone for too long.
package custody

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/harden"
	"github.com/trikey/trikey/internal/secret"
)

// Config is what a desk needs.
type Config struct {
	Dir     string // the machine's data directory
	Region  string // bound into the root set and every key; "" is a region too
	Reader  hsm.Reader
	Engine  hsm.Engine
	Chip    hsm.Chip
	Service Service // nil where the machine stands alone

	// Warm keeps the root on disk, as the chip encrypts it, so that the machine can
	// start without cards (Desk.Start).
	Warm bool

	// Apart says that the key store is with services elsewhere: ceremonies that change which
	// records open are refused.
	Apart bool

	// Remote says that submissions can arrive: there is a listener for them.
	Remote bool

	// Join says that the machine may give its root to another, or take one from a peer,
	// when custodians approve.
	Join bool

	// Patience is how long cards or a ceremony may wait for the next step before
	// they are forgotten; 30 minutes when zero.
	Patience time.Duration
	// Watch is how long a submission window stays open that nobody watches; 30 seconds
	// when zero.
	Watch time.Duration
	Now   func() time.Time // time.Now when nil
	Log   *slog.Logger     // slog.Default() when nil
}

// Service is what lives on the machine's root: kms.Service.
type Service interface {
	// Load is called after the machine has opened, before the last card's Present
	// returns; Unload before the machine is sealed.
	Load(ctx context.Context) error
	Unload()

	// Resplit is called with a new split before its cards count, and again after.
	Resplit(ctx context.Context, split hsm.ID) error

	// RotateRoot moves what is stored to the machine's next root, and calls promote
	// when that counts.
	RotateRoot(ctx context.Context, next hsm.Manifest, promote func(context.Context) error, progress func(done, total int)) error

	// Root tells which root what is stored is of; zero where nothing is.
	Root(ctx context.Context) (hsm.ID, error)
}

// Desk is the console of one machine. Close wipes what it holds.
type Desk struct {
	cfg Config

	mu       sync.Mutex  // held through each step of a ceremony; guards all below
	record   *hsm.Record // nil: the machine is blank
	given    []given     // cards of the unsealing under way
	ceremony *ceremony   // under way
	window   *window     // that is open
	joining  *joining    // of another machine, that is being approved here
	patience *time.Timer // forgets all four

	awaited *awaited // the request to join that this machine has made; nil: none
	joined  hsm.ID   // that which it was last opened with

	destroying *destroying // a committed destruction that is not over; nil: none

	drawing sync.Mutex // held while the identity key is read or drawn

	published sync.Mutex // guards shown, so that Status never waits for a card
	shown     shown
}

// given is a card that was accepted for the unsealing under way.
type given struct {
	id    hsm.CardID
	share *hsm.Share
}

// shown is what Status tells besides what the engine does.
type shown struct {
	have     int
	record   *hsm.Record
	ceremony *hsm.Progress // nil: none is under way

	window  *hsm.Window // nil: none is open
	watched *time.Timer // closes it
	closed  closed      // the last one that closed
}

var _ hsm.Console = (*Desk)(nil)

// New returns the console of the machine whose record is in cfg.Dir.
func New(cfg Config) (*Desk, error) {
	if cfg.Patience == 0 {
		cfg.Patience = 30 * time.Minute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Watch == 0 {
		cfg.Watch = 30 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	record, err := readRecord(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if record != nil && record.Region != cfg.Region {
		return nil, fault.New(fault.BadConfig, "region: the configuration says %q, but the machine was initialised in region %q, "+
			"which cannot be changed", cfg.Region, record.Region)
	}
	d := &Desk{cfg: cfg, record: record}
	if err := d.settleDestruction(context.Background()); err != nil {
		return nil, err
	}
	if err := d.settleRotation(context.Background()); err != nil {
		return nil, err
	}
	d.show()
	return d, nil
}

// show publishes what Status tells. The caller holds mu, or is alone.
func (d *Desk) show() {
	d.published.Lock()
	defer d.published.Unlock()
	d.shown = shown{have: len(d.given), record: d.record, closed: d.shown.closed}
	d.window.show(&d.shown)
	if d.ceremony != nil {
		p := d.ceremony.progress()
		d.shown.ceremony = &p
	}
}

// Status tells the machine's state and how many cards it has been given.
func (d *Desk) Status(ctx context.Context) (hsm.Status, error) {
	s, err := d.cfg.Engine.Status(ctx)
	if err != nil {
		return s, err
	}
	d.published.Lock()
	state := d.shown
	d.published.Unlock()
	s.Region, s.Warm, s.Ceremony, s.Process = d.cfg.Region, d.cfg.Warm, state.ceremony, append(harden.Report(), keyMemory())
	s.Identity = d.fingerprint()
	if state.record == nil {
		s.State = hsm.Blank
		return s, nil
	}
	m := state.record.Manifest
	s.Have, s.Need, s.Shares = state.have, int(m.Threshold), int(m.Shares)
	s.KCV, s.Generation, s.MachineID, s.Cards = m.KCV, m.Generation, m.MachineID, state.record.Cards
	switch {
	case s.State == hsm.Open:
		s.Have = s.Need
	case state.have > 0:
		s.State = hsm.Collecting
	}
	return s, nil
}

// keyMemory tells where keys are.
func keyMemory() harden.Protection {
	kind, err := secret.Protection()
	if err != nil {
		return harden.Protection{Name: "keys", State: err.Error()}
	}
	mapped, used := secret.Usage()
	return harden.Protection{Name: "keys", State: fmt.Sprintf("%d of %d KiB used, in %s pages", (used+1023)>>10, mapped>>10, kind), On: kind == secret.MemfdSecret}
}

// Cards lists the tokens inserted now.
func (d *Desk) Cards(ctx context.Context) ([]hsm.CardInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	cards, err := d.cfg.Reader.Cards(ctx)
	given := d.givenCards()
	for i := range cards {
		cards[i].Given = slices.Contains(given, cards[i].Key())
	}
	return cards, err
}

// givenCards are the cards that the step under way has had. The caller holds mu.
func (d *Desk) givenCards() (keys []string) {
	for _, g := range d.given {
		keys = append(keys, g.id.Key())
	}
	if d.ceremony != nil {
		keys = append(keys, d.ceremony.given()...)
	}
	return keys
}

// wait restarts the time after which an unfinished ceremony is forgotten. The
// caller holds mu.
func (d *Desk) wait() {
	if d.patience != nil {
		d.patience.Stop()
	}
	var timer *time.Timer
	timer = time.AfterFunc(d.cfg.Patience, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.patience == timer { // no step was taken meanwhile
			d.closeWindow("no card came for too long")
			d.forget()
		}
	})
	d.patience = timer
}

// forget wipes what an unsealing or a ceremony has gathered. The caller holds mu.
func (d *Desk) forget() {
	for _, g := range d.given {
		g.share.Value.Wipe()
	}
	d.given, d.joining = nil, nil
	d.closeWindow("the cards given were forgotten")
	if d.ceremony != nil {
		d.ceremony.wipe()
		d.ceremony = nil
	}
	if d.patience != nil {
		d.patience.Stop()
		d.patience = nil
	}
	d.show()
}

// Seal closes an open machine. It opens again with cards only.
func (d *Desk) Seal(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.record == nil {
		return fault.New(fault.MachineBlank, "the machine is blank: there is nothing to seal")
	}
	d.closeWindow("the machine was sealed")
	d.forget()
	d.dropAwaited()
	return errors.Join(d.dropWarm(), d.seal(ctx))
}

func (d *Desk) seal(ctx context.Context) error {
	if d.cfg.Service != nil {
		d.cfg.Service.Unload()
	}
	return d.cfg.Engine.Seal(ctx)
}

// Close wipes what the desk holds. It leaves the engine alone.
func (d *Desk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget()
	d.dropAwaited()
	return nil
}
