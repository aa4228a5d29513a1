package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/secret"
)

func newCard(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "card", Short: "Key cards: list, inspect, format, change PINs, submit to a machine elsewhere"}
	cmd.AddCommand(newCardList(o), newCardInspect(o), newCardFormat(o), newCardChangePIN(o), newCardSubmit(o))
	return cmd
}

func newCardList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the cards in the machine's readers", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.console()
			if err != nil {
				return err
			}
			cards, err := c.Cards(cmd.Context())
			if err != nil {
				return err
			}
			cards = inOrder(cards)
			return o.print(cmd, cards, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "LABEL\tSERIAL\tMAKER\tMODEL\tTRIES\tPIN")
				for _, card := range cards {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\n", card.Label, card.Serial, card.Manufacturer, card.Model, card.PINTries, pinState(card))
				}
				_ = t.Flush()
			})
		},
	}
}

func pinState(c hsm.CardInfo) string {
	switch {
	case c.PINLocked:
		return "locked"
	case c.PINFinalTry:
		return "one try left"
	case c.PINTriesLeft() == 0:
		return "needs a confirmation"
	case c.PINCountLow:
		return "was entered wrongly"
	}
	return "ok"
}

func newCardInspect(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect",
		Short: "Log in to cards and tell what is on them, without giving them to anything",
		Args:  cobra.NoArgs,
	}
	files := addPINFiles(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := o.console()
		if err != nil {
			return err
		}
		reports := []hsm.CardReport{}
		failed := eachCard(cmd, c, *files, func(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (bool, error) {
			report, err := c.Inspect(ctx, card, pin)
			if err == nil {
				reports = append(reports, report)
			}
			// On a terminal one card is inspected at a time.
			return len(*files) == 0 && err == nil, err
		})
		err = o.print(cmd, reports, func(w io.Writer) {
			for _, r := range reports {
				printReport(w, r)
			}
		})
		return errors.Join(failed, err)
	}
	return cmd
}

func printReport(w io.Writer, r hsm.CardReport) {
	fmt.Fprintf(w, "card %q, serial %s\n", r.Card.Label, r.Card.Serial)
	if len(r.Shares) == 0 {
		fmt.Fprintln(w, "  holds no Trikey share")
	}
	for _, s := range r.Shares {
		fmt.Fprintf(w, "  share %d of %d (any %d open the machine)\n  machine      %s\n  generation   %d\n  split        %s\n  key check    %s\n  verdict      %s\n",
			s.Index, s.Shares, s.Threshold, s.MachineID, s.Generation, s.SplitID, s.KCV, s.Verdict)
		if s.Detail != "" {
			fmt.Fprintf(w, "               %s\n", s.Detail)
		}
	}
}
