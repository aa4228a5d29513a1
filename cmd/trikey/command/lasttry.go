package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/pintry"
	"github.com/trikey/trikey/internal/fault"
)

const lastTryFlag = "last-try"

func addLastTry(cmd *cobra.Command) {
	cmd.Flags().StringArray(lastTryFlag, nil, "serial of a card whose PIN may be tried once although that may lock the card for good")
}

// confirmed returns the context of a request to a card: with the confirmation of one
// more try, if the command line has it. It takes the serial off the command line, which
// confirms one try and not one for each PIN file.
func confirmed(cmd *cobra.Command, serial string) context.Context {
	flag := cmd.Flags().Lookup(lastTryFlag)
	if flag == nil {
		return cmd.Context()
	}
	serials, ok := flag.Value.(interface {
		GetSlice() []string
		Replace(serials []string) error
	})
	if !ok {
		return cmd.Context()
	}
	left := serials.GetSlice()
	at := slices.Index(left, serial)
	if at < 0 || serials.Replace(slices.Delete(left, at, at+1)) != nil {
		return cmd.Context()
	}
	return hsm.ConfirmLastTry(cmd.Context(), serial)
}

// permit has a person at the terminal confirm a try that may lock the card, where the
// card or its count says so. It comes before the PIN is asked for.
func permit(cmd *cobra.Command, w io.Writer, card hsm.CardInfo) (context.Context, error) {
	refusal := pintry.Check(card)
	switch {
	case refusal == nil:
		return cmd.Context(), nil
	case errors.Is(refusal, fault.PINLocked):
		return nil, refusal
	}
	ctx := confirmed(cmd, card.Serial)
	if hsm.LastTry(ctx) != "" {
		return ctx, nil
	}
	fmt.Fprintf(w, "Card %q, serial %s: %s. A wrong PIN may lock the card for good.\n", card.Label, card.Serial, pintry.Left(card))
	if err := typeSerial(cmd, w, card.Serial, "to have its PIN tried once more"); err != nil {
		return nil, errors.Join(refusal, err)
	}
	return hsm.ConfirmLastTry(ctx, card.Serial), nil
}

// typeSerial has a person type a card's serial, to show that it is this card that is
// meant.
func typeSerial(cmd *cobra.Command, w io.Writer, serial, why string) error {
	return typed(cmd, w, fmt.Sprintf("Type the card's serial, %s, %s (empty: no): ", serial, why), serial)
}

// triesText is what the prompt for a PIN says of the card's tries: nothing while all
// is well.
func triesText(card hsm.CardInfo) string {
	if card.PINTries == 0 && !card.PINCountLow && !card.PINFinalTry {
		return ""
	}
	return " (" + pintry.Left(card) + ")"
}

// mayAskAgain reports whether a person at the terminal, and nobody else, may try a
// card's PIN again: after a wrong PIN, or when the card turned out to need a
// confirmation.
func mayAskAgain(err error) bool {
	return errors.Is(err, fault.PINIncorrect) || errors.Is(err, fault.PINFinalTry) || errors.Is(err, fault.PINTriesSpent)
}

// atTerminal reports whether there is a person to ask.
func atTerminal() bool { return term.IsTerminal(int(os.Stdin.Fd())) }
