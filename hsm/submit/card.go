package submit

import (
	"context"
	"errors"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Read returns the envelope of the share on a card that a window asks for. Where there
// is none it returns what is wrong with the likeliest, and the share of another machine
// or split never leaves the card's computer.
func Read(ctx context.Context, card hsm.Card, w hsm.Window) (*secret.Bytes, error) {
	objects, err := card.Objects(ctx)
	if err != nil {
		return nil, err
	}
	var found *secret.Bytes
	problem := fault.New(fault.CardEmpty, "the card holds no Trikey share: is it the right card?")
	for _, o := range objects {
		err := check(o, w)
		if err == nil && found == nil {
			found = o
			continue
		}
		if err != nil && errors.Is(problem, fault.CardEmpty) && !errors.Is(err, fault.CardEmpty) {
			problem = err
		}
		o.Wipe()
	}
	if found == nil {
		return nil, problem
	}
	return found, nil
}

// check reports why a window has no use for an object on a card.
func check(o *secret.Bytes, w hsm.Window) error {
	s, err := hsm.ParseShare(o)
	if err != nil {
		return err
	}
	defer s.Value.Wipe()
	switch m := &s.Manifest; {
	case m.MachineID != w.MachineID:
		return fault.New(fault.CardOtherMachine, "this card belongs to machine %s, but machine %s asks for it; nothing was sent: find out why",
			m.MachineID, w.MachineID)
	case m.SplitID != w.SplitID:
		return fault.New(fault.CardSuperseded, "this card is of split %s; the machine asks for split %s, and nothing was sent: "+
			"use the card dealt last", m.SplitID, w.SplitID)
	}
	return s.Check(&s.Manifest)
}
