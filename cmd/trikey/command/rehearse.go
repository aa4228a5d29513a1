package command

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/kms"
)

// rehearsalKeys is how many business keys a rehearsed rotation has to move.
const rehearsalKeys = 25

// rehearsalCards is how many cards a rehearsal has at least: five of a machine that
// three open, and an empty one.
const rehearsalCards = 6

// rehearsal goes through the ceremony on simulated cards, chip and machine: those of
// the demo, and two cards more. On a terminal the person types the PINs, which are
// shown; otherwise they are given by files.
func (x *ceremonyCmd) rehearsal(cmd *cobra.Command) (err error) {
	w := cmd.ErrOrStderr()
	dir, err := os.MkdirTemp("", "trikey-rehearsal-")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, os.RemoveAll(dir))
		say(cmd, w, "The rehearsal is over; nothing of it is left.")
	}()
	say(cmd, w, "Rehearsal: cards, chip and machine are simulated in a directory that is removed at the end.")
	d, err := layOut(dir, 0)
	if err != nil {
		return err
	}
	files, err := d.moreCards(max(rehearsalCards-demoCards, x.plan.Shares-demoCards))
	if err != nil {
		return err
	}
	if x.plan.Kind != hsm.Init {
		// One card stays empty, for who needs a new one.
		if err := d.deal(cmd.Context(), rehearsalCards-1); err != nil {
			return err
		}
	}
	if x.plan.Kind == hsm.ReplaceCard {
		x.plan.Lost, files = []string{d.ids[0].Serial}, files[1:]
	}
	slog.SetDefault(slog.New(slog.DiscardHandler))
	n, err := newNode(cmd.Context(), d.cfg, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if x.plan.Kind == hsm.RotateRoot || x.plan.Kind == hsm.Resplit {
		if err := d.openWithKeys(cmd.Context(), n); err != nil {
			return err
		}
	}
	if atTerminal() && len(*x.files) == 0 {
		if err := d.showPINs(cmd); err != nil {
			return err
		}
		files = nil
	}
	return x.conduct(cmd, n.console, d.cfg.Data, files)
}

// openWithKeys opens the machine and makes keys, so that there is something to move.
func (d *demoDir) openWithKeys(ctx context.Context, n *node) error {
	for i := range demoCards {
		if _, err := n.console.Present(ctx, d.ids[i], d.pins[i]); err != nil {
			return err
		}
	}
	for range rehearsalKeys {
		if _, err := n.service.CreateKey(ctx, "rehearsal", kms.NewKey{Algorithm: alg.AES256GCM}); err != nil {
			return err
		}
	}
	return nil
}

func (d *demoDir) showPINs(cmd *cobra.Command) error {
	w := cmd.ErrOrStderr()
	say(cmd, w, "Its cards and their PINs:")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, id := range d.ids {
		err := d.pins[i].Use(func(p []byte) error {
			_, err := fmt.Fprintf(t, "  %s\t%s\t%s\n", id.Label, id.Serial, p)
			return err
		})
		if err != nil {
			return err
		}
	}
	return t.Flush()
}
