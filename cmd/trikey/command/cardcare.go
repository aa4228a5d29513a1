package command

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

func newCardChangePIN(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "change-pin CARD",
		Short: "Change the PIN of a card, named by its serial or label",
		Args:  cobra.ExactArgs(1),
	}
	addLastTry(cmd)
	oldFile := cmd.Flags().String("pin-file", "", "file with the card's PIN, mode 0600")
	newFile := cmd.Flags().String("new-pin-file", "", "file with the new PIN, mode 0600")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := o.console()
		if err != nil {
			return err
		}
		card, err := theCard(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		err = withPIN(cmd, card, *oldFile, func(ctx context.Context, old *secret.Bytes) error {
			fresh, err := newPIN(cmd, "New PIN", "--new-pin-file", *newFile)
			if err != nil {
				return err
			}
			defer fresh.Wipe()
			return c.ChangePIN(ctx, card.CardID, old, fresh)
		})
		if err != nil {
			return err
		}
		return o.print(cmd, card.CardID, func(w io.Writer) {
			fmt.Fprintf(w, "The PIN of card %q, serial %s, is changed.\n", card.Label, card.Serial)
		})
	}
	return cmd
}

func newCardFormat(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "format CARD | format --init --label LABEL [SERIAL]",
		Short: "Remove Trikey's objects from a card, or make a token of a blank one",
		Long: `Remove Trikey's objects from a card, named by its serial or label. What others have
stored on it stays. A card of the machine's current dealing is refused, unless its
serial is confirmed: with --force, or on the terminal.

With --init, make a token of a blank card, with a label, an SO PIN, which unlocks and
erases it, and a PIN. A card that is a token already is never touched.`,
		Args: cobra.MaximumNArgs(1),
	}
	addLastTry(cmd)
	f := formatFlags{}
	cmd.Flags().StringVar(&f.pin, "pin-file", "", "file with the card's PIN, with --init the one to be, mode 0600")
	cmd.Flags().StringVar(&f.force, "force", "", "serial of a card of the current dealing that is to be formatted all the same")
	cmd.Flags().BoolVar(&f.init, "init", false, "make a token of a blank card")
	cmd.Flags().StringVar(&f.label, "label", "", "with --init: the token's label")
	cmd.Flags().StringVar(&f.module, "module", "", "with --init: the PKCS#11 module of the blank card, where several have one")
	cmd.Flags().StringVar(&f.soPIN, "so-pin-file", "", "with --init: file with the SO PIN to be, mode 0600")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := ""
		if len(args) > 0 {
			name = args[0]
		}
		c, err := o.console()
		switch {
		case err != nil:
			return err
		case f.init && f.force != "":
			return fault.New(fault.Usage, "--force is not for --init, which never touches a card that is a token")
		case f.init:
			return o.initialiseCard(cmd, c, f, name)
		case f.label+f.module+f.soPIN != "":
			return fault.New(fault.Usage, "--label, --module and --so-pin-file are for --init only")
		case name == "":
			return fault.New(fault.Usage, "name the card to format by its serial or label (trikey card list)")
		}
		return o.formatCard(cmd, c, f, name)
	}
	return cmd
}

// formatFlags are the flags of card format.
type formatFlags struct {
	pin, soPIN, force, label, module string
	init                             bool
}

func (o *options) formatCard(cmd *cobra.Command, c hsm.Console, f formatFlags, name string) error {
	card, err := theCard(cmd.Context(), c, name)
	if err != nil {
		return err
	}
	var report hsm.FormatReport
	err = withPIN(cmd, card, f.pin, func(ctx context.Context, pin *secret.Bytes) (err error) {
		report, err = c.Format(ctx, card.CardID, pin, f.force)
		if !errors.Is(err, fault.CardInUse) || f.pin != "" || f.force != "" {
			return err
		}
		w := cmd.ErrOrStderr()
		fmt.Fprintf(w, "  refused: %v\n", err)
		if typed := typeSerial(cmd, w, card.Serial, "to lose the share on it"); typed != nil {
			return errors.Join(err, typed)
		}
		report, err = c.Format(cmd.Context(), card.CardID, pin, card.Serial) // this PIN was right
		return err
	})
	if err != nil {
		return err
	}
	return o.print(cmd, report, func(w io.Writer) {
		fmt.Fprintf(w, "Card %q, serial %s: removed %d Trikey objects; %d of others stay.\n", card.Label, card.Serial, report.Removed, report.Foreign)
	})
}

func (o *options) initialiseCard(cmd *cobra.Command, c hsm.Console, f formatFlags, serial string) error {
	if f.label == "" {
		return fault.New(fault.Usage, "--init needs a --label for the card")
	}
	soPIN, err := newPIN(cmd, "SO PIN", "--so-pin-file", f.soPIN)
	if err != nil {
		return err
	}
	defer soPIN.Wipe()
	pin, err := newPIN(cmd, "PIN", "--pin-file", f.pin)
	if err != nil {
		return err
	}
	defer pin.Wipe()
	id, err := c.Initialise(cmd.Context(), hsm.CardID{Module: f.module, Serial: serial, Label: f.label}, soPIN, pin)
	if err != nil {
		return err
	}
	return o.print(cmd, id, func(w io.Writer) {
		fmt.Fprintf(w, "Card %q is initialised, serial %s.\n", id.Label, id.Serial)
	})
}
