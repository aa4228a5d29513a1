package command

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/trikey/trikey/api"
	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/backup"
)

func newBackup(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "backup", Short: "Backups of the key store: create, verify, drill, restore; and copies of the destruction keys",
		Long: `Backups of the key store: create, verify, drill, restore; and copies of the destruction keys.

A backup has every record of the key store at one moment, sealed by the machine. It
does not have the destruction keys: those are in a small file of their own, epochs, of
which the newest copy is kept (backup epochs), and only that. What was destroyed does
not come back from any backup as long as no older copy of that file is left.

Restoring takes a backup, the newest epochs file, and the key cards.`,
	}
	cmd.AddCommand(newBackupCreate(o), newBackupEpochs(o), newBackupVerify(o), newBackupDrill(o), newBackupRestore(o))
	return cmd
}

// stream posts a body to the admin API and returns the answer's.
func (o *options) stream(ctx context.Context, path string, body io.Reader) (io.ReadCloser, error) {
	w, err := o.reach()
	if err != nil {
		return nil, err
	}
	w.Timeout = 0 // a backup may be long
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.base+"backup/"+path, body)
	if err != nil {
		return nil, err
	}
	req.Header = w.header
	res, err := jsonhttp.Open(w.Client, req)
	if err != nil {
		return nil, w.explain(err)
	}
	return res.Body, nil
}

// post is stream with an answer in JSON.
func (o *options) post(ctx context.Context, path string, body io.Reader, into any) error {
	answer, err := o.stream(ctx, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Close() }()
	return json.UnmarshalRead(answer, into)
}

func newBackupCreate(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "create --out FILE", Short: "Write a backup of the key store while the service runs", Args: cobra.NoArgs,
		Long: `Write a backup of the key store while the service runs.

The file appears when it is complete and its every byte was checked. It is sealed by the
machine: only the machine's key cards, together with the epochs file, open it.`,
	}
	out := cmd.Flags().String("out", "", "new file, required")
	_ = cmd.MarkFlagRequired("out")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if _, err := os.Lstat(*out); err == nil {
			return fault.New(fault.Conflict, "%s is there already; name a new file", *out)
		}
		answer, err := o.stream(cmd.Context(), "create", nil)
		if err != nil {
			return err
		}
		defer func() { _ = answer.Close() }()
		f, err := os.CreateTemp(filepath.Dir(*out), filepath.Base(*out)+".part-*")
		if err != nil {
			return fault.Wrap(fault.Usage, err, "--out")
		}
		defer func() {
			err = errors.Join(err, f.Close())
			if err != nil {
				_ = os.Remove(f.Name())
			}
		}()
		if _, err := io.Copy(f, answer); err != nil {
			return fault.Wrap(fault.Unavailable, err, "the backup was broken off; the service's log says why")
		}
		checked, err := checkFile(cmd.Context(), f)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), os.Link(f.Name(), *out), durable.Remove(filepath.Dir(*out), filepath.Base(f.Name()))); err != nil {
			return fault.Wrap(fault.Unavailable, err, "the backup could not be written")
		}
		return o.printBackup(cmd, api.BackupOf(checked))
	}
	return cmd
}

// checkFile checks every byte of a backup from its beginning.
func checkFile(ctx context.Context, f *os.File) (backup.Checked, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return backup.Checked{}, err
	}
	return backup.Read(ctx, f, nil, nil)
}

func (o *options) printBackup(cmd *cobra.Command, b v1.Backup) error {
	return o.print(cmd, b, func(w io.Writer) {
		fmt.Fprintf(w, "backup       %s\nmade         %s by trikey %s\nmachine      %s\nroot         %s, generation %d, %s\n",
			b.ID, b.Created.Format("2006-01-02 15:04:05 MST"), b.Release, b.MachineID, b.RootID, b.Generation, b.KCV)
		fmt.Fprintf(w, "holds        %d keys with %d versions, %d records, at revision %d\ndestructions %d\naudit        %d events\nfingerprint  %s\n",
			b.Keys, b.Versions, b.Records, b.Revision, b.Destructions, b.AuditEvents, b.Fingerprint)
		if b.Opened {
			fmt.Fprintln(w, "Every record of it opens.")
		}
	})
}

func newBackupEpochs(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "epochs --out FILE", Short: "Replace the copy of the destruction keys by the newest", Args: cobra.NoArgs,
		Long: `Replace the copy of the destruction keys by the newest.

FILE is written over. Keep no other copy: each older one, with a backup and the cards,
brings back what was destroyed since it was made.`,
	}
	out := cmd.Flags().String("out", "", "file to replace, required")
	_ = cmd.MarkFlagRequired("out")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		answer, err := o.stream(cmd.Context(), "epochs", nil)
		if err != nil {
			return err
		}
		defer func() { _ = answer.Close() }()
		raw, err := io.ReadAll(answer)
		if err == nil {
			err = durable.WriteBytes(filepath.Dir(*out), filepath.Base(*out), raw)
		}
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "the copy was not replaced")
		}
		return nil
	}
	return cmd
}

func newBackupVerify(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify FILE", Short: "Check every byte of a backup and who signed it; needs no machine", Args: cobra.ExactArgs(1),
		Long: `Check every byte of a backup and who signed it; needs no machine.

With --open the running service, which must have the backup's root, also opens every
record. Exit code 6 says that the backup is not as it was made.`,
	}
	fingerprint := cmd.Flags().String("fingerprint", "", "of the machine that must have signed it, as trikey machine status shows it")
	opened := cmd.Flags().Bool("open", false, "have the running service open every record")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return fault.Wrap(fault.Usage, err, "the backup")
		}
		defer func() { _ = f.Close() }()
		checked, err := checkFile(cmd.Context(), f)
		if err != nil {
			return err
		}
		if *fingerprint != "" && *fingerprint != checked.Fingerprint {
			return fault.New(fault.BackupForeign, "the backup is signed by the machine with fingerprint %s, not %s", checked.Fingerprint, *fingerprint)
		}
		b := api.BackupOf(checked)
		if *opened {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			if err := o.post(cmd.Context(), "verify", f, &b); err != nil {
				return err
			}
			b.Opened = true
		}
		return o.printBackup(cmd, b)
	}
	return cmd
}

const epochsHelp = "newest copy of the destruction keys (trikey backup epochs), required"

func newBackupDrill(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "drill FILE --epochs FILE", Short: "Restore a backup into a directory that is thrown away, and open every key", Args: cobra.ExactArgs(1),
		Long: `Restore a backup into a directory that is thrown away, and open every key.

The running service does it, with the machine that is open: it shows that the backup and
the epochs file go together and are whole. That the cards open the machine is shown by
trikey machine verify-cards.`,
	}
	epochs := cmd.Flags().String("epochs", "", epochsHelp)
	_ = cmd.MarkFlagRequired("epochs")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		raw, err := os.ReadFile(*epochs)
		if err != nil {
			return fault.Wrap(fault.Usage, err, "the destruction keys (--epochs)")
		}
		f, err := os.Open(args[0])
		if err != nil {
			return fault.Wrap(fault.Usage, err, "the backup")
		}
		defer func() { _ = f.Close() }()
		out, err := o.drill(cmd.Context(), raw, f)
		if err != nil {
			return err
		}
		return o.printRestored(cmd, out)
	}
	return cmd
}

// drill has the service open everything in a backup.
func (o *options) drill(ctx context.Context, epochs []byte, backup io.Reader) (out kms.Restored, err error) {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(epochs)))
	err = o.post(ctx, "drill", io.MultiReader(bytes.NewReader(head), bytes.NewReader(epochs), backup), &out)
	return out, err
}

func (o *options) printRestored(cmd *cobra.Command, out kms.Restored) error {
	return o.print(cmd, out, func(w io.Writer) {
		fmt.Fprintf(w, "%d records and %d keys: %d versions open, %d are destroyed.\n", out.Records, out.Keys, out.Opened, out.Destroyed)
	})
}
