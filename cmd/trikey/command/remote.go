package command

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/submit"
	"github.com/trikey/trikey/internal/fault"
)

// unsealRemote opens a submission window and watches it until the machine is open.
func (o *options) unsealRemote(cmd *cobra.Command, c hsm.Console) error {
	status, err := c.Status(cmd.Context())
	if err != nil {
		return err
	}
	if status.State == hsm.Open {
		say(cmd, cmd.ErrOrStderr(), "The machine is open already.")
		return o.printStatus(cmd, status)
	}
	w, err := c.OpenWindow(cmd.Context())
	if err != nil {
		return err
	}
	tellWindow(cmd, w)
	err = watch(cmd.Context(), c, w, func(have int) {
		say(cmd, cmd.ErrOrStderr(), "%d of %d cards are given.", have, w.Need)
	})
	// Also when the user pressed Ctrl-C. One that is closed already is no failure.
	after := context.WithoutCancel(cmd.Context())
	if closed := c.CloseWindow(after, w.ID); closed != nil && !errors.Is(closed, fault.NoWindow) {
		err = errors.Join(err, closed)
	}
	if status, failed := c.Status(after); failed != nil {
		err = errors.Join(err, failed)
	} else if err = errors.Join(err, o.printStatus(cmd, status)); errors.Is(err, context.Canceled) {
		return fault.New(fault.CardsMissing, "the submission window is closed, and the machine still sealed: %d of %d cards are given; "+
			"they stay given for half an hour", status.Have, status.Need)
	}
	return err
}

func tellWindow(cmd *cobra.Command, window hsm.Window) {
	w := cmd.ErrOrStderr()
	say(cmd, w, "The machine waits for cards from elsewhere.")
	fmt.Fprintf(w, "  machine      %s\n  split        %s\n  fingerprint  %s\n", window.MachineID, window.SplitID, submit.Fingerprint(window))
	say(cmd, w, "Call each custodian, who runs trikey card submit --to https://THIS-HOST:PORT (machine.custodians.listen).")
	say(cmd, w, "Read the whole fingerprint out; it is of this window only. Cards can be given here meanwhile (trikey machine unseal).")
	say(cmd, w, "Ctrl-C closes the window; cards given so far stay given.")
}

// watch calls tell when the number of cards given changes, and returns when the machine
// is open.
func watch(ctx context.Context, c hsm.Console, w hsm.Window, tell func(have int)) error {
	for have := -1; ; {
		now, err := c.WatchWindow(ctx, w.ID)
		status, failed := c.Status(ctx)
		switch {
		case failed != nil:
			return failed
		case status.State == hsm.Open:
			tell(w.Need)
			return nil
		case err != nil:
			return err
		}
		if now.Have != have {
			have = now.Have
			tell(have)
		}
		if err := sleep(ctx, pollInterval); err != nil {
			return err
		}
	}
}
