// Package pintry keeps a machine from locking cards: it counts the tries of their
// PINs, and stops before a card would.
//
// A card locks for good after a few wrong PINs, mostly three. Cards that tell how far
// they are do so in their token flags; many do not tell. So the machine counts for
// itself, durably and before each try: a process that dies while a PIN is tried has
// counted it. After hsm.PINTryLimit tries without success, or when the card says that
// one is left, a try is made only when a person has confirmed it.
package pintry

import (
	"errors"
	"fmt"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
)

// Counter counts the tries of each card's PIN since it was last right. A card is told
// by its serial and label: a serial alone is shared by the PINs of some cards, each
// with a counter of its own, and the module is but the way to the card.
type Counter interface {
	// Used returns how many tries were made.
	Used(id hsm.CardID) int

	// Add counts n more. When it returns nil, the count survives a crash.
	Add(id hsm.CardID, n int) error

	// Clear forgets the tries.
	Clear(id hsm.CardID) error
}

// Login calls try, which tries a card's PIN, at most once: not at all where that could
// lock the card, unless confirmed reports that a person wants it. card is what the
// token tells now. Any end of try but success leaves the try counted, since whether
// the card saw the PIN is then not known.
func Login(tries Counter, card hsm.CardInfo, confirmed func() bool, try func() error) error {
	card.PINTries = tries.Used(card.CardID)
	if err := Check(card); err != nil && (errors.Is(err, fault.PINLocked) || !confirmed()) {
		return err
	}
	n := 1
	if card.PINCountLow && card.PINTries == 0 {
		n = 2 // a wrong try was made elsewhere, and this one follows it
	}
	if err := tries.Add(card.CardID, n); err != nil {
		return fault.Wrap(fault.Internal, err, "%s was not tried: the try could not be counted first; "+
			"make sure that the data directory can be written to", Name(card.CardID))
	}
	err := try()
	if errors.Is(err, fault.PINIncorrect) {
		card.PINTries = tries.Used(card.CardID)
		return fault.Wrap(fault.CodeOf(err), err, "%s", Left(card))
	}
	if err != nil {
		return err
	}
	if err := tries.Clear(card.CardID); err != nil {
		return fault.Wrap(fault.Internal, err, "the PIN of %s is right, but that could not be noted; "+
			"make sure that the data directory can be written to", Name(card.CardID))
	}
	return nil
}

// Check reports why a card's PIN is not to be tried: fault.PINLocked, or PINFinalTry
// and PINTriesSpent, which a person can set aside.
func Check(card hsm.CardInfo) error {
	const how = "make sure of the PIN, then confirm one more try by the card's serial (--last-try %s; " +
		"on a terminal, type it when asked), or use another card"
	name := Name(card.CardID)
	switch {
	case card.PINLocked:
		return fault.New(fault.PINLocked, "%s has locked its PIN; unlock it with its SO PIN, or use another card", name)
	case card.PINFinalTry:
		return fault.New(fault.PINFinalTry, "%s has one try left before it locks, and nothing was tried; "+how, name, card.Serial)
	case card.PINTriesLeft() == 0:
		return fault.New(fault.PINTriesSpent, "%s had %d tries without the right PIN at this machine and may lock at the next one, "+
			"so nothing was tried; "+how, name, card.PINTries, card.Serial)
	}
	return nil
}

// Left tells how many tries a card has, in a few words.
func Left(card hsm.CardInfo) string {
	switch left := card.PINTriesLeft(); {
	case card.PINLocked:
		return "the card has locked its PIN"
	case card.PINFinalTry:
		return "one try left before the card locks"
	case left == 0:
		return "no try left before this machine asks for a confirmation"
	case left == 1:
		return "1 try left before this machine stops asking"
	default:
		return fmt.Sprintf("%d tries left before this machine stops asking", left)
	}
}

// Name names a card in a message.
func Name(id hsm.CardID) string { return fmt.Sprintf("card %q (serial %s)", id.Label, id.Serial) }
