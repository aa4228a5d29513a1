package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/backup"
)

// restoreOptions are what a restore is told.
type restoreOptions struct {
	file, epochs, state string
	acceptRollback      bool
	pins                *[]string
}

func newBackupRestore(o *options) *cobra.Command {
	var r restoreOptions
	cmd := &cobra.Command{
		Use: "restore FILE --epochs FILE", Short: "Restore a backup on a host without a key store; takes the key cards", Args: cobra.ExactArgs(1),
		Long: `Restore a backup on a host without a key store; takes the key cards.

Prepare the host as for a new machine: configuration, chip (trikey machine prepare-chip),
card readers; its data directory must be empty or not there, and an etcd that it names
must have nothing under the prefix. Then enough of the backup's cards open the machine, the
backup is put together beside the data directory, and every record and key of it is
opened. Only when all of that is well does it become the data directory; otherwise
nothing is left of it.

The machine is the same, by its cards; its chip, and the key that signs, are new: note the
new fingerprint.`,
	}
	cmd.Flags().StringVar(&r.epochs, "epochs", "", epochsHelp)
	cmd.Flags().BoolVar(&r.acceptRollback, "accept-rollback", false, "take destruction keys that are older than the backup")
	cmd.Flags().StringVar(&r.state, "state", "", "directory of the count of PIN tries (default: trikey, in the user's configuration directory)")
	_ = cmd.MarkFlagRequired("epochs")
	r.pins = addPINFiles(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.file = args[0]
		return localised(cmd, o.restore(cmd, &r))
	}
	return cmd
}

func (o *options) restore(cmd *cobra.Command, r *restoreOptions) (err error) {
	cfg, err := o.load(nil)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	f, err := os.Open(r.file)
	if err != nil {
		return fault.Wrap(fault.Usage, err, "the backup")
	}
	defer func() { _ = f.Close() }()
	epochs, err := os.ReadFile(r.epochs)
	if err != nil {
		return fault.Wrap(fault.Usage, err, "the destruction keys (--epochs)")
	}
	if err := emptyTarget(ctx, cfg); err != nil {
		return err
	}
	checked, err := checkFile(ctx, f)
	if err != nil {
		return err
	}
	if err := kms.CheckEpochs(epochs, checked, r.acceptRollback); err != nil {
		return err
	}
	if len(cfg.Machines) == 0 && len(checked.Header.Record.Commitments) == 0 {
		return fault.New(fault.BackupForeign, "the backup was made by a service whose crypto machines run apart: name them in the configuration (machines)")
	}
	parent := filepath.Dir(cfg.Data)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return fault.Wrap(fault.BadConfig, err, "the directory of the data directory")
	}
	staging, err := os.MkdirTemp(parent, filepath.Base(cfg.Data)+".restore-*")
	if err != nil {
		return fault.Wrap(fault.BadConfig, err, "no place beside the data directory")
	}
	defer func() { err = errors.Join(err, os.RemoveAll(staging)) }()
	if err := layStaging(staging, checked.Header, epochs); err != nil {
		return err
	}
	n, err := newRestore(ctx, cfg, staging, r.state)
	if err != nil {
		return err
	}
	out, err := o.fill(cmd, n, f, checked, *r.pins)
	if err = errors.Join(err, n.Close()); err != nil {
		return err
	}
	failpoint.Hit("restore-checked")
	if err := commitRestore(ctx, cfg, staging); err != nil {
		return err
	}
	return o.printRestored(cmd, out)
}

// layStaging writes what the machine needs before its cards are given.
func layStaging(dir string, h backup.Header, epochs []byte) error {
	for name, content := range h.Files {
		path := filepath.Join(dir, name)
		if !filepath.IsLocal(name) {
			return fault.New(fault.BackupDamaged, "the backup names a file outside of the data directory: %q", name)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := durable.WriteBytes(filepath.Dir(path), filepath.Base(path), content); err != nil {
			return err
		}
	}
	if len(h.Record.Commitments) > 0 {
		if err := writeMachineRecord(dir, h.Record); err != nil {
			return err
		}
	}
	return durable.WriteBytes(dir, epochsFile, epochs)
}

// fill opens the machine with its cards, puts the key store together, and opens all of it.
func (o *options) fill(cmd *cobra.Command, n *node, f *os.File, checked backup.Checked, pins []string) (out kms.Restored, err error) {
	ctx := cmd.Context()
	if n.console == nil { // the machines run apart, and are open or not
		return o.fillOpen(cmd, n, f, checked)
	}
	failed := eachCard(cmd, n.console, pins, func(ctx context.Context, card hsm.CardID, pin *secret.Bytes) (bool, error) {
		s, err := n.console.Present(ctx, card, pin)
		if err == nil {
			say(cmd, cmd.ErrOrStderr(), "Card %q accepted: %d of %d.", card.Label, s.Have, s.Need)
		}
		return err == nil && s.State == hsm.Open, err
	})
	status, err := n.console.Status(ctx)
	switch {
	case failed != nil || err != nil:
		return out, errors.Join(failed, err)
	case status.State != hsm.Open:
		return out, fault.New(fault.CardsMissing, "%d of %d cards are given; give all of them to one restore", status.Have, status.Need)
	}
	return o.fillOpen(cmd, n, f, checked)
}

// fillOpen is fill where the machine is open. The backup is read a second time, and must be
// the one that was checked.
func (o *options) fillOpen(cmd *cobra.Command, n *node, f *os.File, first backup.Checked) (out kms.Restored, err error) {
	ctx := cmd.Context()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return out, err
	}
	checked, err := backup.Read(ctx, f, n.machine, kms.Fill(ctx, n.store))
	if err == nil && !bytes.Equal(checked.SHA256, first.SHA256) {
		err = fault.New(fault.BackupDamaged, "the backup was changed while it was restored; restore a copy that nobody writes to")
	}
	if err != nil {
		return out, err
	}
	if err := n.service.Load(ctx); err != nil {
		return out, fault.Wrap(fault.BackupDamaged, err, "the backup does not make a key store")
	}
	fmt.Fprintln(cmd.ErrOrStderr(), text(cmd, "Opening every record and key."))
	return n.service.CheckRestored(ctx, checked.Summary)
}
