package command

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// ceremonyCmd is one of the commands that conduct a ceremony.
type ceremonyCmd struct {
	*options
	plan     hsm.Plan
	files    *[]string
	rehearse bool
}

// newCeremony makes the command of a ceremony.
func newCeremony(o *options, kind hsm.CeremonyKind, short, long string, flags func(*cobra.Command, *hsm.Plan)) *cobra.Command {
	x := &ceremonyCmd{options: o, plan: hsm.Plan{Kind: kind}}
	cmd := &cobra.Command{Use: string(kind), Short: short, Long: short + ".\n\n" + long, Args: cobra.NoArgs}
	x.files = addPINFiles(cmd)
	cmd.Flags().StringArrayVar(&x.plan.People, "person", nil, "who takes part, for the report; give it once for each (default: the user)")
	cmd.Flags().BoolVar(&x.rehearse, "rehearse", false, "do all of it on simulated cards, in a directory that is removed at the end")
	if flags != nil {
		flags(cmd, &x.plan)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(x.plan.People) == 0 {
			if u, err := user.Current(); err == nil {
				x.plan.People = []string{u.Username}
			}
		}
		if x.rehearse {
			return localised(cmd, x.rehearsal(cmd))
		}
		cfg, err := o.load(nil)
		if err != nil {
			return err
		}
		c, err := o.console()
		if err != nil {
			return err
		}
		return localised(cmd, x.conduct(cmd, c, cfg.Data, *x.files))
	}
	return cmd
}

// conduct goes through a ceremony, and aborts it when anything fails before its commit.
func (x *ceremonyCmd) conduct(cmd *cobra.Command, c hsm.Console, data string, files []string) (err error) {
	w := cmd.ErrOrStderr()
	if len(files) > 0 && len(files) != x.plan.Shares && x.plan.Kind == hsm.Init && !x.rehearse {
		return fault.New(fault.Usage, "%d PIN files are given for %d cards; give --pin-file once for each card", len(files), x.plan.Shares)
	}
	p, err := c.Begin(cmd.Context(), x.plan)
	if err != nil {
		return err
	}
	introduce(cmd, w, p)
	committing := false
	defer func() {
		if err == nil || committing {
			return
		}
		// Also when the user pressed Ctrl-C: the cards must not keep their shares.
		if abortErr := c.Abort(context.WithoutCancel(cmd.Context())); abortErr != nil {
			err = errors.Join(err, abortErr)
			return
		}
		say(cmd, w, "The ceremony was aborted, and left nothing on the cards.")
	}()
	for p.Step != hsm.StepCommit {
		if p, err = x.step(cmd, c, p, files); err != nil {
			return err
		}
	}
	if p.Kind == hsm.VerifyCards || p.Kind == hsm.Destroy && !x.plan.Resume {
		if p, err = x.more(cmd, c, p, files); err != nil {
			return err
		}
	}
	if x.rehearse && len(files) > 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), text(cmd, "Key check value: %s", p.KCV))
	} else if err := confirm(cmd, p, len(files) > 0); err != nil {
		return err
	}
	// A commit that fails may have done its work in part: it is taken up again, not
	// aborted.
	committing = true
	report, err := commit(cmd, c, p.KCV)
	if err != nil {
		return x.afterFailure(cmd, c, err)
	}
	return x.print(cmd, report, func(w io.Writer) { printCeremony(cmd, w, report, data) })
}

// afterFailure aborts a ceremony whose commit changed nothing; one that counts by now
// is told of.
func (x *ceremonyCmd) afterFailure(cmd *cobra.Command, c hsm.Console, failed error) error {
	ctx := context.WithoutCancel(cmd.Context())
	if err := c.Abort(ctx); err != nil {
		return errors.Join(failed, err)
	}
	return failed
}

// step has cards given to one step, until the ceremony is at the next.
func (x *ceremonyCmd) step(cmd *cobra.Command, c hsm.Console, p hsm.Progress, files []string) (hsm.Progress, error) {
	w := cmd.ErrOrStderr()
	var do func(context.Context, hsm.CardID, *secret.Bytes) (hsm.Progress, error)
	var done func(card hsm.CardID, p hsm.Progress)
	switch p.Step {
	case hsm.StepGather:
		if p.Kind == hsm.VerifyCards || p.Kind == hsm.Destroy {
			say(cmd, w, "Step: the machine's cards, at least %d of %d. Insert them one after the other, or all at once.", p.Need, p.Shares)
		} else {
			say(cmd, w, "Step: %d of the machine's cards authorise this. Insert them one after the other, or all at once.", p.Need)
		}
		do, done = c.Gather, func(card hsm.CardID, p hsm.Progress) { gathered(cmd, w, card, p) }
	case hsm.StepDeal:
		say(cmd, w, "Step: %d cards get their shares. A card that has a share of this machine may get a new one.", p.Shares)
		do, done = c.Deal, func(card hsm.CardID, p hsm.Progress) {
			say(cmd, w, "Card %q got share %d of %d, and gave it back unchanged.", card.Label, p.Dealt, p.Shares)
		}
	default:
		say(cmd, w, "Step: each of the %d cards is read once more.", p.Shares)
		do, done = c.Verify, func(card hsm.CardID, p hsm.Progress) {
			say(cmd, w, "Card %q is verified: %d of %d.", card.Label, p.Verified, p.Shares)
		}
	}
	at := p.Step
	err := eachCard(cmd, c, files, func(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (bool, error) {
		next, err := do(ctx, card, pin)
		if err != nil {
			return false, err
		}
		p = next
		done(card, p)
		return p.Step != at, nil
	})
	if err == nil && p.Step == at {
		err = fault.New(fault.CardsMissing, "not every card was given: the step %q has %d of %d", at, max(p.Gathered, p.Dealt, p.Verified), max(p.Need, p.Shares))
	}
	return p, err
}

func gathered(cmd *cobra.Command, w io.Writer, card hsm.CardID, p hsm.Progress) {
	if p.Kind == hsm.VerifyCards {
		say(cmd, w, "Card %q is good: %d of %d tested.", card.Label, p.Gathered, p.Shares)
		return
	}
	say(cmd, w, "Card %q accepted: %d of %d.", card.Label, p.Gathered, max(p.Need, p.Gathered))
}

// more takes the cards that a drill, or a destruction, has had no need of yet. Of PIN
// files it takes those that are left; their cards must all be good.
func (x *ceremonyCmd) more(cmd *cobra.Command, c hsm.Console, p hsm.Progress, files []string) (hsm.Progress, error) {
	w := cmd.ErrOrStderr()
	give := func(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (bool, error) {
		next, err := c.Gather(ctx, card, pin)
		if errors.Is(err, fault.CardRepeated) && len(files) > 0 {
			return false, nil
		}
		if err == nil {
			p = next
			gathered(cmd, w, card, p)
		}
		return len(files) == 0 || p.Gathered == p.Shares, err
	}
	if len(files) > 0 {
		if p.Gathered == p.Shares {
			return p, nil
		}
		return p, eachCard(cmd, c, files, give)
	}
	for p.Gathered < p.Shares && atTerminal() {
		fmt.Fprint(w, text(cmd, "Are there more cards to show? Type yes, or press Enter to end: "))
		line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		if err != nil || strings.TrimSpace(line) == "" {
			break
		}
		if err := eachCard(cmd, c, files, give); err != nil {
			return p, err
		}
	}
	return p, nil
}

// introduce says what the ceremony will do.
func introduce(cmd *cobra.Command, w io.Writer, p hsm.Progress) {
	switch p.Kind {
	case hsm.Init:
		say(cmd, w, "This ceremony makes a new root key and deals it to %d cards; any %d of them open the machine.", p.Shares, p.Threshold)
	case hsm.VerifyCards:
		say(cmd, w, "This ceremony tests the machine's cards. Nothing is opened and nothing changes.")
	case hsm.Resplit:
		say(cmd, w, "This ceremony deals the same root key anew to %d cards, any %d of which open the machine. The cards before no longer count after it.", p.Shares, p.Threshold)
	case hsm.ReplaceCard:
		say(cmd, w, "This ceremony deals the root key anew without the cards that are lost, to %d cards, any %d of which open the machine.", p.Shares, p.Threshold)
	case hsm.RotateRoot:
		say(cmd, w, "This ceremony makes a new root key for %d cards, any %d of which open the machine, and moves every key to it. The service goes on answering.", p.Shares, p.Threshold)
	case hsm.Destroy:
		say(cmd, w, "This ceremony destroys the root key. Every key, every message sealed with one, and every backup is lost for good.")
	}
	say(cmd, w, "Until its end it can be ended with Ctrl-C and leaves nothing.")
	if p.Shares == p.Threshold && p.Kind != hsm.VerifyCards && p.Kind != hsm.Destroy {
		say(cmd, w, "Note: with %d of %d cards, losing one card loses every key. --shares 5 is recommended.", p.Threshold, p.Shares)
	}
}

// confirm has a person compare the key check value and type it. With PIN files nobody
// is there to do so, and a destruction must say so in its flags.
func confirm(cmd *cobra.Command, p hsm.Progress, unattended bool) error {
	if p.Kind == hsm.VerifyCards {
		return nil
	}
	if unattended || !atTerminal() {
		if yes, err := cmd.Flags().GetString("confirm"); p.Kind == hsm.Destroy && (err != nil || yes != p.KCV) {
			return fault.New(fault.Usage, "to destroy the root key without a terminal, give its check value: --confirm %s", p.KCV)
		}
		return nil
	}
	w := cmd.ErrOrStderr()
	say(cmd, w, "Key check value: %s", p.KCV)
	if err := typed(cmd, w, text(cmd, "Write it down for the record, then type its six digits: "), p.KCV, p.KCV[strings.LastIndexByte(p.KCV, ':')+1:]); err != nil {
		return err
	}
	if p.Kind == hsm.Destroy {
		return typed(cmd, w, text(cmd, "The last step cannot be undone. Type the word destroy: "), "destroy")
	}
	return nil
}

// typed has a person type one of the texts that are expected.
func typed(cmd *cobra.Command, w io.Writer, prompt string, want ...string) error {
	fmt.Fprint(w, prompt)
	line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil {
		return fault.Wrap(fault.Usage, err, "it was not confirmed")
	}
	if line = strings.TrimSpace(line); !slices.Contains(want, line) {
		return fault.New(fault.Usage, "%q was typed, not %s", line, want[0])
	}
	return nil
}

// commit commits, and shows how far a long one is.
func commit(cmd *cobra.Command, c hsm.Console, kcv string) (hsm.Report, error) {
	type result struct {
		report hsm.Report
		err    error
	}
	done := make(chan result, 1)
	go func() {
		// Not to be stopped half way.
		r, err := c.Commit(context.WithoutCancel(cmd.Context()), kcv)
		done <- result{r, err}
	}()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	shown := false
	for {
		select {
		case r := <-done:
			if shown {
				fmt.Fprintln(cmd.ErrOrStderr())
			}
			return r.report, r.err
		case <-tick.C:
			if p, err := c.Progress(context.WithoutCancel(cmd.Context())); err == nil && p.Total > 0 {
				shown = bar(cmd, text(cmd, "Moving every record to the new root"), p.Done, p.Total) || shown
			}
		}
	}
}

// bar draws a progress bar on a terminal.
func bar(cmd *cobra.Command, what string, done, total int) bool {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return false
	}
	const width = 30
	full := min(width, width*done/max(total, 1))
	fmt.Fprintf(cmd.ErrOrStderr(), "\r%s [%s%s] %d/%d", what,
		strings.Repeat("#", full), strings.Repeat(".", width-full), done, total)
	return true
}

// printCeremony tells what came of it.
func printCeremony(cmd *cobra.Command, w io.Writer, r hsm.Report, data string) {
	say(cmd, w, "Done: %s.", r.Kind)
	if r.Kind != hsm.Destroy {
		say(cmd, w, "any %d of %d cards open the machine", r.Threshold, r.Shares)
	}
	say(cmd, w, "key check value %s, root generation %d", r.KCV, r.Generation)
	for _, card := range r.Cards {
		fmt.Fprintf(w, "  %2d  %-20s %-18s %s\n", card.Index, card.Label, card.Serial, card.Role)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(w, "  ! %s\n", note)
	}
	say(cmd, w, "signed by the machine with fingerprint %s", r.Fingerprint)
	name := filepath.Join(data, hsm.ReportDir, r.Name())
	say(cmd, w, "report: %s.json, to print: %s.html", name, name)
	if r.Kind == hsm.Init {
		say(cmd, w, "Still sealed: open it with trikey machine unseal.")
	}
}
