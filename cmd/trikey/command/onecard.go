package command

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// lister is where cards are inserted: at the machine, or in this computer.
type lister interface {
	Cards(ctx context.Context) ([]hsm.CardInfo, error)
}

// theCard returns the inserted card of that serial or label. What changes a card names
// it: the one that happens to be in the reader may be another.
func theCard(ctx context.Context, c lister, name string) (hsm.CardInfo, error) {
	cards, err := c.Cards(ctx)
	if err != nil {
		return hsm.CardInfo{}, err
	}
	var found []hsm.CardInfo
	for _, card := range cards {
		if card.Serial == name {
			return card, nil
		}
		if card.Label == name {
			found = append(found, card)
		}
	}
	switch len(found) {
	case 0:
		return hsm.CardInfo{}, fault.New(fault.CardAbsent, "the card %s is not in a reader; insert it", name)
	case 1:
		return found[0], nil
	}
	return hsm.CardInfo{}, fault.New(fault.Conflict, "%d cards have the label %q; name one by its serial (trikey card list)", len(found), name)
}

// withPIN calls f with the PIN of a card: that in the file, or, where none is named,
// the one that a person types.
func withPIN(cmd *cobra.Command, card hsm.CardInfo, file string, f func(ctx context.Context, pin *secret.Bytes) error) error {
	ctx := cmd.Context()
	var pin *secret.Bytes
	var err error
	switch {
	case file != "":
		ctx = confirmed(cmd, card.Serial)
		pin, err = pinFileOf(card, file)
	case !atTerminal():
		err = fault.New(fault.Usage, "there is no terminal to ask for the PIN; give --pin-file")
	default:
		w := cmd.ErrOrStderr()
		if ctx, err = permit(cmd, w, card); err == nil {
			pin, err = askSecret(w, fmt.Sprintf("Card %q, serial %s%s. PIN: ", card.Label, card.Serial, triesText(card)))
		}
	}
	if err != nil {
		return err
	}
	defer pin.Wipe()
	return f(ctx, pin)
}

// pinFileOf reads a card's PIN from a file, unless the file says that it is another
// card's.
func pinFileOf(card hsm.CardInfo, file string) (*secret.Bytes, error) {
	name, explicit, err := cardName(file)
	if err != nil {
		return nil, err
	}
	if explicit && name != card.Serial && name != card.Label {
		return nil, fault.New(fault.Usage, "%s has the PIN of the card %s, not of %q (serial %s); nothing was tried", file, name, card.Label, card.Serial)
	}
	return readSecretFile(file)
}

// newPIN returns a PIN that is to be: from the file, or typed twice.
func newPIN(cmd *cobra.Command, what, flag, file string) (*secret.Bytes, error) {
	if file != "" {
		return readSecretFile(file)
	}
	if !atTerminal() {
		return nil, fault.New(fault.Usage, "there is no terminal to ask for the %s; give %s", what, flag)
	}
	w := cmd.ErrOrStderr()
	pin, err := askSecret(w, what+": ")
	if err != nil {
		return nil, err
	}
	again, err := askSecret(w, what+" once more: ")
	if err == nil && !again.Equal(pin) {
		err = fault.New(fault.Usage, "the two were not the same; nothing was changed")
	}
	again.Wipe()
	if err != nil {
		pin.Wipe()
		return nil, err
	}
	return pin, nil
}
