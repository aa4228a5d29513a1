package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/console"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

func newMachineCmd(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "machine", Short: "The crypto machine: initialise, unseal, seal, status"}
	cmd.AddCommand(newMachineInit(o), newMachineUnseal(o), newMachineSeal(o), newMachineStatus(o))
	return cmd
}

// console returns the console of the machine on this host.
func (o *options) console() (hsm.Console, error) {
	cfg, err := o.load(nil)
	if err != nil {
		return nil, err
	}
	return console.Dial(cfg.MachineSocket()), nil
}

func newMachineStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the machine's state", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.console()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			return o.printStatus(cmd, s)
		},
	}
}

func (o *options) printStatus(cmd *cobra.Command, s hsm.Status) error {
	return o.print(cmd, s, func(w io.Writer) {
		fmt.Fprintf(w, "state        %s\n", stateText(s))
		if s.State != hsm.Blank {
			fmt.Fprintf(w, "cards        any %d of %d open it\nkey check    %s\ngeneration   %d\nmachine      %s\n",
				s.Need, s.Shares, s.KCV, s.Generation, s.MachineID)
		}
		if s.Region != "" {
			fmt.Fprintf(w, "region       %s\n", s.Region)
		}
		fmt.Fprintf(w, "engine       %s\nkeys in      %s\nchip         %s\n", s.Engine, s.Memory, s.Chip)
	})
}

func stateText(s hsm.Status) string {
	switch s.State {
	case hsm.Blank:
		return "blank: initialise it with trikey machine init"
	case hsm.Collecting:
		return fmt.Sprintf("collecting: %d of %d cards given", s.Have, s.Need)
	case hsm.Closed:
		return fmt.Sprintf("sealed: %d cards open it (trikey machine unseal)", s.Need)
	}
	return string(s.State)
}

func newMachineSeal(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "seal", Short: "Close the machine; it serves nothing until its cards are given again", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.console()
			if err != nil {
				return err
			}
			if err := c.Seal(cmd.Context()); err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			return o.printStatus(cmd, s)
		},
	}
}

func newMachineUnseal(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "unseal",
		Short: "Give key cards to open the machine",
		Long: `Give key cards to open the machine.

Cards may be given in several runs and by several people: those given stay given for
half an hour. A card that is refused changes nothing. The command ends with exit code
3 while cards are still missing.

With --remote, wait for custodians who are elsewhere and send their shares with trikey
card submit, until the machine is open.`,
		Args: cobra.NoArgs,
	}
	files := addPINFiles(cmd)
	remote := cmd.Flags().Bool("remote", false, "wait for cards of custodians who are elsewhere")
	cmd.MarkFlagsMutuallyExclusive("remote", "pin-file")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := o.console()
		if err != nil {
			return err
		}
		if *remote {
			return o.unsealRemote(cmd, c)
		}
		return o.unseal(cmd, c, *files)
	}
	return cmd
}

func (o *options) unseal(cmd *cobra.Command, c hsm.Console, files []string) error {
	status, err := c.Status(cmd.Context())
	if err != nil {
		return err
	}
	switch status.State {
	case hsm.Open:
		fmt.Fprintln(cmd.ErrOrStderr(), "The machine is open already.")
		return o.printStatus(cmd, status)
	case hsm.Blank:
		return fault.New(fault.MachineBlank, "the machine is blank: initialise it first (trikey machine init)")
	}
	failed := eachCard(cmd, c, files, func(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (bool, error) {
		s, err := c.Present(ctx, card, pin)
		if err != nil {
			return false, err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "Card %q accepted.\n", card.Label)
		return s.State == hsm.Open, nil
	})
	if status, err = c.Status(cmd.Context()); err != nil {
		return errors.Join(failed, err)
	}
	if err := o.printStatus(cmd, status); err != nil {
		return err
	}
	switch {
	case failed != nil:
		return failed
	case status.State != hsm.Open:
		return fault.New(fault.CardsMissing, "the machine is still sealed: %d of %d cards are given; give %d more",
			status.Have, status.Need, status.Need-status.Have)
	}
	return nil
}

func newMachineInit(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a root key and deal it to key cards",
		Long: `Make a new root key and deal it to key cards.

The machine must be blank and the cards initialised tokens without a share. Each
card gets its share, is closed, opened again and compared; then every card is read
once more and the root key is rebuilt from what was read. Only then, and when the key
check value is confirmed, does the ceremony count; until then it can be aborted, and
the shares are taken off the cards again.

With 3 of 3 cards, one dead card loses every key for good. --shares 5 deals five
cards of which any three open the machine: recommended.`,
		Args: cobra.NoArgs,
	}
	plan := hsm.Plan{Kind: hsm.Init}
	cmd.Flags().IntVar(&plan.Shares, "shares", 3, "cards to deal; 5 is recommended")
	cmd.Flags().IntVar(&plan.Threshold, "threshold", 3, "cards that open the machine")
	files := addPINFiles(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := o.console()
		if err != nil {
			return err
		}
		if plan.Shares == plan.Threshold {
			fmt.Fprintf(cmd.ErrOrStderr(), "Note: with %d of %d cards, losing one card loses every key. --shares 5 is recommended.\n",
				plan.Threshold, plan.Shares)
		}
		record, err := initMachine(cmd, c, plan, *files)
		if err != nil {
			return err
		}
		return o.print(cmd, record, func(w io.Writer) {
			fmt.Fprintf(w, "machine %s is initialised; any %d of %d cards open it\nkey check value %s\n",
				record.MachineID, record.Threshold, record.Shares, record.KCV)
			for _, card := range record.Cards {
				fmt.Fprintf(w, "  share %d on card %q, serial %s\n", card.Index, card.Label, card.Serial)
			}
			fmt.Fprintln(w, "It is sealed: open it with trikey machine unseal.")
		})
	}
	return cmd
}

// initMachine conducts the ceremony, and aborts it when anything fails.
func initMachine(cmd *cobra.Command, c hsm.Console, plan hsm.Plan, files []string) (record hsm.Report, err error) {
	if len(files) > 0 && len(files) != plan.Shares {
		return record, fault.New(fault.Usage, "%d PIN files are given for %d cards; give --pin-file once for each card", len(files), plan.Shares)
	}
	progress, err := c.Begin(cmd.Context(), plan)
	if err != nil {
		return record, err
	}
	defer func() {
		if err != nil {
			// Also when the user pressed Ctrl-C: the cards must not keep their shares.
			if abortErr := c.Abort(context.WithoutCancel(cmd.Context())); abortErr != nil {
				err = errors.Join(err, abortErr)
				return
			}
			err = fault.Wrap(fault.CodeOf(err), err, "the ceremony was aborted, and left nothing on the cards")
		}
	}()
	for _, round := range []struct {
		step hsm.Step
		what string
		do   func(context.Context, hsm.CardID, *secret.Bytes) (hsm.Progress, error)
	}{{hsm.StepDeal, "dealt and read back", c.Deal}, {hsm.StepVerify, "verified", c.Verify}} {
		err := eachCard(cmd, c, files, func(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (bool, error) {
			p, err := round.do(ctx, card, pin)
			if err == nil {
				progress = p
				fmt.Fprintf(cmd.ErrOrStderr(), "Card %q %s.\n", card.Label, round.what)
			}
			return err == nil && p.Step != round.step, err
		})
		if err != nil {
			return record, err
		}
		if progress.Step == round.step {
			return record, fault.New(fault.CardsMissing, "not every card was given")
		}
	}
	if err := confirm(cmd, progress.KCV, len(files) > 0); err != nil {
		return record, err
	}
	return c.Commit(cmd.Context(), progress.KCV)
}

// confirm has a person compare the key check value and type it. With PIN files
// nobody is there to do so.
func confirm(cmd *cobra.Command, kcv string, unattended bool) error {
	if unattended || !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Key check value: %s\nWrite it down for the record, then type its six digits: ", kcv)
	line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil {
		return fault.Wrap(fault.Usage, err, "the key check value was not confirmed")
	}
	if typed := strings.TrimSpace(line); typed != kcv && !strings.HasSuffix(kcv, ":"+typed) {
		return fault.New(fault.Usage, "%q was typed, not %s", typed, kcv)
	}
	return nil
}
