package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

func newJoinRequest(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "join-request --out FILE", Short: "At a machine that joins: ask an open one for the root key", Args: cobra.NoArgs,
		Long: `At a machine that joins, which runs and is blank or sealed: ask an open one for the root
key. The chip makes a key pair for this request; FILE has its public half, signed by the
machine. It is not secret. Bring it to an open machine (trikey machine join-approve), and
tell the custodians there this machine's fingerprint over a line of its own.

The request is good for an hour, until the next one, and until the machine ends.`,
	}
	out := cmd.Flags().String("out", "", "file for the request; it must not exist")
	_ = cmd.MarkFlagRequired("out") // it exists
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := o.console()
		if err != nil {
			return err
		}
		if err := mustBeNew(*out); err != nil {
			return err
		}
		r, err := c.RequestJoin(cmd.Context())
		if err != nil {
			return localised(cmd, err)
		}
		if err := writeNew(*out, r); err != nil {
			return err
		}
		return o.print(cmd, map[string]any{"request": r.ID, "fingerprint": r.Fingerprint, "expires": r.Expires}, func(w io.Writer) {
			fmt.Fprintf(w, "request      %s\nfingerprint  %s\nregion       %s\ngood until   %s\n", r.ID, r.Fingerprint, r.Region, r.Expires.Local().Format(time.DateTime))
			say(cmd, w, "Two custodians approve it at an open machine: trikey machine join-approve --in FILE --out GRANT")
		})
	}
	return cmd
}

func newJoinApprove(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "join-approve --in FILE --out GRANT", Short: "At an open machine: approve, as one of two custodians, that another gets its root key", Args: cobra.NoArgs,
		Long: `At an open machine: approve that another gets its root key. Two custodians do, one after the
other, each with a card of the machine's in its reader. The card proves that its custodian is
there: its share is checked and forgotten, nothing is combined. With the second approval the
machine seals its root key for the chip of the new machine, and GRANT is written.

Compare the fingerprint with what the new machine's own screen shows (trikey machine status),
not with the file that was brought. Approvals given wait half an hour for the other.`,
	}
	in := cmd.Flags().String("in", "", "what trikey machine join-request wrote at the new machine")
	out := cmd.Flags().String("out", "", "file for the grant; it must not exist")
	confirm := cmd.Flags().String("confirm", "", "without a terminal: the beginning of the new machine's fingerprint, at least 16 characters")
	pin := cmd.Flags().String("pin-file", "", "file with the card's PIN, mode 0600; FILE.card beside it has the card's serial or label")
	addLastTry(cmd)
	_, _ = cmd.MarkFlagRequired("in"), cmd.MarkFlagRequired("out") // they exist
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := o.console()
		if err != nil {
			return err
		}
		if err := mustBeNew(*out); err != nil {
			return err
		}
		var r hsm.JoinRequest
		if err := readJoin(*in, &r); err != nil {
			return err
		}
		p, err := approveJoin(cmd, c, r, *confirm, *pin)
		if err != nil {
			return localised(cmd, err)
		}
		if p.Grant != nil {
			if err := writeNew(*out, p.Grant); err != nil {
				return err
			}
		}
		return o.print(cmd, map[string]any{"request": p.Request, "have": p.Have, "need": p.Need, "granted": p.Grant != nil}, func(w io.Writer) {
			say(cmd, w, "Approved: %d of %d.", p.Have, p.Need)
			if p.Grant == nil {
				say(cmd, w, "Nothing was given yet: another custodian runs this command with another card.")
				return
			}
			say(cmd, w, "Granted: %s. At the new machine: trikey machine join --in GRANT --peer %s", *out, p.Grant.Fingerprint)
		})
	}
	return cmd
}

// approveJoin shows a custodian what will happen, has it confirmed, and gives a card.
func approveJoin(cmd *cobra.Command, c hsm.Console, r hsm.JoinRequest, confirm, pinFile string) (p hsm.JoinProgress, err error) {
	w := cmd.ErrOrStderr()
	if err := r.Check(); err != nil {
		return p, err
	}
	say(cmd, w, "This gives the root key of this machine to another one, which can do all that this one can:")
	fmt.Fprintf(w, "  fingerprint  %s\n  calls itself %q\n  region       %q\n  request      %s\n  good until   %s\n",
		r.Fingerprint, r.Host, r.Region, r.ID, r.Expires.Local().Format(time.DateTime))
	if confirm == "" {
		if !atTerminal() {
			return p, fault.New(fault.Usage, "there is no terminal to confirm the fingerprint on; give --confirm, as the new machine's own screen shows it")
		}
		a := newAsker(cmd)
		if confirm, err = a.line(text(cmd, "Compare it with the new machine's own screen, then type its first %d characters: ", hsm.JoinConfirm)); err != nil {
			return p, err
		}
	}
	if err := r.Confirmed(confirm); err != nil {
		return p, err
	}
	var files []string
	if pinFile != "" {
		files = []string{pinFile}
	}
	err = eachCard(cmd, c, files, func(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (bool, error) {
		p, err = c.ApproveJoin(ctx, r, confirm, card, pin)
		return err == nil, err
	})
	return p, err
}

func newJoin(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "join --in GRANT --peer FINGERPRINT", Short: "At a machine that joins: open it with what two custodians granted", Args: cobra.NoArgs,
		Long: `At a machine that joins: open it with what two custodians granted at an open machine. The
chip takes the root key; the machine is one of that root key from then on, and the same cards
open it the next time it starts. A grant is good once, for the request that it was made for.

FINGERPRINT is that of the machine which granted, in full, as its own screen shows it (trikey
machine status).`,
	}
	in := cmd.Flags().String("in", "", "what trikey machine join-approve wrote at the open machine")
	peer := cmd.Flags().String("peer", "", "fingerprint of the open machine")
	_, _ = cmd.MarkFlagRequired("in"), cmd.MarkFlagRequired("peer") // they exist
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := o.console()
		if err != nil {
			return err
		}
		var g hsm.JoinGrant
		if err := readJoin(*in, &g); err != nil {
			return err
		}
		s, err := c.Join(cmd.Context(), g, *peer)
		if err != nil {
			return localised(cmd, err)
		}
		return o.printStatus(cmd, s)
	}
	return cmd
}

// readJoin reads a request or a grant.
func readJoin(path string, into any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fault.Wrap(fault.Usage, err, "the file")
	}
	if err := json.Unmarshal(raw, into, json.RejectUnknownMembers(true)); err != nil {
		return fault.Wrap(fault.RecordDamaged, err, "%s is not what the other machine has written; bring it again", path)
	}
	return nil
}

// mustBeNew looks before a person takes the trouble that the file is for.
func mustBeNew(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Usage, "%s exists already, or cannot be looked for; name a new file in a directory that there is", path)
	}
	return nil
}

func writeNew(path string, value any) error {
	if err := durable.Write(filepath.Dir(path), filepath.Base(path), value); err != nil {
		return fault.Wrap(fault.Usage, err, "%s could not be written; name another file, and do this step again", path)
	}
	return nil
}
