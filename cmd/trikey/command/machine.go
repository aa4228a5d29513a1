package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/console"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

func newMachineCmd(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "machine", Short: "The crypto machine: its state, its cards, its ceremonies"}
	cmd.AddCommand(newMachineUnseal(o), newMachineSeal(o), newMachineStatus(o), newMachineAbort(o), newCheckReport(o), newPrepareChip(o),
		newMachineServe(o), newExportRecord(o), newAdopt(o), newJoinRequest(o), newJoinApprove(o), newJoin(o))
	dealing := func(cmd *cobra.Command, plan *hsm.Plan) {
		cmd.Flags().IntVar(&plan.Shares, "shares", plan.Shares, "cards to deal (default: as many as now; 5 is recommended)")
		cmd.Flags().IntVar(&plan.Threshold, "threshold", plan.Threshold, "cards that open the machine (default: as many as now)")
	}
	cmd.AddCommand(newCeremony(o, hsm.Init, "Make a root key and deal it to key cards", initHelp,
		func(cmd *cobra.Command, plan *hsm.Plan) {
			plan.Shares, plan.Threshold = 3, 3
			dealing(cmd, plan)
		}))
	cmd.AddCommand(newCeremony(o, hsm.VerifyCards, "Test the machine's cards: a drill that changes nothing", verifyHelp, nil))
	cmd.AddCommand(newCeremony(o, hsm.Resplit, "Deal the root key anew, to the same cards or to others", resplitHelp, dealing))
	cmd.AddCommand(newCeremony(o, hsm.ReplaceCard, "Deal the root key anew without cards that are lost", replaceHelp,
		func(cmd *cobra.Command, plan *hsm.Plan) {
			cmd.Flags().StringArrayVar(&plan.Lost, "lost", nil, "serial of a card that is lost, stolen or broken; give it once for each")
		}))
	cmd.AddCommand(newCeremony(o, hsm.RotateRoot, "Make a new root key and move every key to it", rotateHelp,
		func(cmd *cobra.Command, plan *hsm.Plan) {
			dealing(cmd, plan)
			cmd.Flags().BoolVar(&plan.Resume, "resume", false, "take up a rotation that was interrupted after its cards were dealt")
		}))
	cmd.AddCommand(newCeremony(o, hsm.Destroy, "Destroy the root key: nothing opens any more", destroyHelp,
		func(cmd *cobra.Command, plan *hsm.Plan) {
			cmd.Flags().BoolVar(&plan.Resume, "resume", false, "go on with a destruction that was interrupted")
			cmd.Flags().String("confirm", "", "without a terminal: the key check value of the root that shall be destroyed")
		}))
	return cmd
}

const (
	initHelp = `The machine must be blank and the cards initialised tokens without a share. Each
card gets its share, is closed, opened again and compared; then every card is read
once more and the root key is rebuilt from what was read. Only then, and when the key
check value is confirmed, does the ceremony count; until then it can be aborted, and
the shares are taken off the cards again.

With 3 of 3 cards, one dead card loses every key for good. --shares 5 deals five
cards of which any three open the machine: recommended.`
	verifyHelp = `At least as many cards as open the machine are read and the root key is rebuilt
from them in every way that makes each card take part; then it is forgotten. A sealed
machine stays sealed.`
	resplitHelp = `The root key stays the same, so that no key changes; the cards before no longer
open the machine. Use it when a custodian leaves, to have five cards instead of three,
or after replace-card. Enough of the cards before must authorise it. A copy of the
machine's data directory from before, together with enough of the old cards, is still
the root key: where that may have happened, rotate it.`
	replaceHelp = `As resplit, but the cards named as lost can neither authorise it nor get a share.
Enough of the others must be there.`
	rotateHelp = `A new root key is dealt to the cards; then every key is wrapped under it, opened once
more to be sure, and the key store is switched to it in one step. The service answers
all the while. Until that step the cards before count, from then on only the new shares
do. Use it when the root key, or enough cards with their PINs, may be in wrong hands.

After an interruption the machine knows by itself whether the step was taken: unseal it
with the cards it asks for. Where it was not, --resume goes on with the new cards.`
	destroyHelp = `Enough cards to authorise it, and so many that those left over can never rebuild the
root key, are erased; the chip forgets the key that seals the root. Every message that
was sealed with any key of this machine is lost, in every backup too.`
)

// console returns the console of the machine on this host.
func (o *options) console() (hsm.Console, error) {
	cfg, err := o.load(nil)
	if err != nil {
		return nil, err
	}
	if len(cfg.Machines) > 0 {
		return nil, fault.New(fault.BadConfig, "this is the configuration of a service whose crypto machines run apart (%s); "+
			"ceremonies are at their consoles: run the command on a machine's host, with its configuration", strings.Join(cfg.Machines, ", "))
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
		if s.Identity != "" {
			fmt.Fprintf(w, "fingerprint  %s\n", s.Identity)
		}
		if s.Region != "" {
			fmt.Fprintf(w, "region       %s\n", s.Region)
		}
		fmt.Fprintf(w, "starts       %s\n", startText(s))
		fmt.Fprintf(w, "engine       %s\nkeys in      %s\nchip         %s\n", s.Engine, s.Memory, s.Chip)
		if s.Ceremony != nil {
			fmt.Fprintf(w, "ceremony     %s, at the step %s\n", s.Ceremony.Kind, s.Ceremony.Step)
		}
		for _, p := range s.Process {
			fmt.Fprintf(w, "%-12s %s\n", p.Name, p.State)
		}
	})
}

func startText(s hsm.Status) string {
	if s.Warm {
		return "warm: the chip opens it without cards"
	}
	return "with cards"
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

func newMachineAbort(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "abort", Short: "End the ceremony under way, and take its shares off the cards again", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.console()
			if err != nil {
				return err
			}
			return c.Abort(cmd.Context())
		},
	}
}

func newPrepareChip(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "prepare-chip",
		Short: "Make the machine's keys on its chip, once, before the machine is initialised",
		Long: `Make the machine's keys on its chip: the key that seals the root, and the pair that
loads keys into the chip. Both stay inside it for good.

The chip is the token that machine.chip of the configuration names; it must be
initialised, with the PIN in machine.chip.pin_file. A chip that has its keys is left
alone.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := o.load(nil)
			if err != nil {
				return err
			}
			if err := provisionChip(cfg); err != nil {
				return err
			}
			return o.print(cmd, map[string]string{"chip": cfg.Machine.Chip.Label, "result": "ok"}, func(w io.Writer) {
				fmt.Fprintf(w, "The chip %q has its keys.\n", cfg.Machine.Chip.Label)
			})
		},
	}
}

func newCheckReport(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "check-report FILE", Short: "Check the signature of a ceremony's report; needs no machine", Args: cobra.ExactArgs(1),
	}
	fingerprint := cmd.Flags().String("fingerprint", "", "of the machine that must have signed it, as trikey machine status shows it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		raw, err := os.ReadFile(args[0])
		if err != nil {
			return fault.Wrap(fault.Usage, err, "the report")
		}
		var r hsm.Report
		if err := json.Unmarshal(raw, &r, json.RejectUnknownMembers(true)); err != nil {
			return fault.Wrap(fault.RecordDamaged, err, "%s is not a report", args[0])
		}
		if err := r.Check(*fingerprint); err != nil {
			return err
		}
		return o.print(cmd, map[string]string{"result": "ok", "fingerprint": r.Fingerprint}, func(w io.Writer) {
			fmt.Fprintf(w, "The report of %s, %s, is as the machine with fingerprint %s has signed it.\n", r.Kind, r.Ended.Format("2006-01-02 15:04:05 MST"), r.Fingerprint)
			if *fingerprint == "" {
				fmt.Fprintln(w, "Compare the fingerprint with that of trikey machine status.")
			}
		})
	}
	return cmd
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
			return localised(cmd, o.unsealRemote(cmd, c))
		}
		return localised(cmd, o.unseal(cmd, c, *files))
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
		say(cmd, cmd.ErrOrStderr(), "The machine is open already.")
		return o.printStatus(cmd, status)
	case hsm.Blank:
		return fault.New(fault.MachineBlank, "the machine is blank: initialise it first (trikey machine init)")
	}
	failed := eachCard(cmd, c, files, func(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (bool, error) {
		s, err := c.Present(ctx, card, pin)
		if err != nil {
			return false, err
		}
		say(cmd, cmd.ErrOrStderr(), "Card %q accepted: %d of %d.", card.Label, s.Have, s.Need)
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
