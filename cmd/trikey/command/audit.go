package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/audit"
)

func newAudit(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "The audit log: read it, verify it, export it",
		Long: `The audit log: read it, verify it, export it.

These commands read the log's files and need no service. DIR is the directory of a log,
or a file that audit export wrote; without it, the log of the configuration is meant.`,
	}
	cmd.AddCommand(newAuditTail(o), newAuditVerify(o), newAuditExport(o))
	return cmd
}

// auditPath is the log that a command is about.
func (o *options) auditPath(args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	cfg, err := o.load(nil)
	if err != nil {
		return "", err
	}
	return cfg.AuditDir(), nil
}

func newAuditTail(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "tail [DIR]", Short: "Show the newest events", Args: cobra.MaximumNArgs(1)}
	n := cmd.Flags().IntP("lines", "n", 20, "how many")
	follow := cmd.Flags().BoolP("follow", "f", false, "go on with each event that is added, until Ctrl-C")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		dir, err := o.auditPath(args)
		if err != nil {
			return err
		}
		return audit.Tail(cmd.Context(), dir, *n, *follow, func(line []byte) error {
			var e audit.Event
			if o.output == "json" || json.Unmarshal(line, &e) != nil {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", line)
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), eventText(&e))
			return err
		})
	}
	return cmd
}

// eventText is an event on one line.
func eventText(e *audit.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d  %s  %s  %s", e.Number, e.Time.Format(time.RFC3339), e.Kind, e.Op)
	if e.Phase == audit.End {
		fmt.Fprintf(&b, " (end of %d)", e.Of)
	}
	for _, x := range []struct {
		name  string
		value any
		shown bool
	}{
		{"by", e.Actor, e.Actor != ""},
		{"from", e.Address, e.Address != ""},
		{"key", fmt.Sprintf("%d.%d", e.Key, e.Version), e.Key != 0},
		{"to", fmt.Sprintf("%d.%d", e.ToKey, e.ToVersion), e.ToKey != 0},
		{"items", e.Items, e.Items != 0},
		{"outcome", e.Outcome, e.Outcome != ""},
	} {
		if x.shown {
			fmt.Fprintf(&b, "  %s=%v", x.name, x.value)
		}
	}
	if len(e.Details) > 0 {
		fmt.Fprintf(&b, "  %v", e.Details)
	}
	return b.String()
}

func newAuditVerify(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify [DIR]", Short: "Recompute the whole log, and compare it with every checkpoint", Args: cobra.MaximumNArgs(1),
		Long: `Recompute the whole log, and compare it with every checkpoint.

The first event that was edited, deleted, reordered or truncated is named, and the
command ends with exit code 6.

Somebody who owns the host can write another log and have the machine sign it. What
shows that is a checkpoint that was kept elsewhere (audit.ship, or a receipt): give it
with --since. Give --fingerprint, as trikey machine status shows it, so that the log is
not checked with a key that came with it.`,
		Example: "  trikey audit verify --fingerprint 4f1c… --since /mnt/witness/checkpoints.jsonl\n  trikey audit verify --key keys --receipt change.tlog-proof",
	}
	var v audit.VerifyOptions
	cmd.Flags().StringArrayVar(&v.Fingerprints, "fingerprint", nil, "of the machine's key (repeatable)")
	key := cmd.Flags().String("key", "", "file with the log's public keys, kept elsewhere")
	since := cmd.Flags().String("since", "", "file with a checkpoint, or several, that the log must contain")
	receipt := cmd.Flags().String("receipt", "", "file with the receipt of a change, which the log must contain; with --key and no DIR, it is checked alone")
	cmd.Flags().Int64Var(&v.From, "from", 0, "accept that the events before this number are kept elsewhere")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, f := range []struct {
			path string
			take func([]byte)
		}{
			{*key, func(b []byte) { v.Keys = string(b) }}, {*since, func(b []byte) { v.Since = b }}, {*receipt, func(b []byte) { v.Receipt = b }},
		} {
			if f.path == "" {
				continue
			}
			raw, err := os.ReadFile(f.path)
			if err != nil {
				return fault.Wrap(fault.Usage, err, "a file that was named")
			}
			f.take(raw)
		}
		if len(args) == 0 && v.Keys != "" && v.Receipt != nil && v.Since == nil {
			r, err := audit.CheckReceipt(v.Receipt, v)
			if err != nil {
				return err
			}
			return o.printVerified(cmd, r)
		}
		path, err := o.auditPath(args)
		if err != nil {
			return err
		}
		r, err := audit.Verify(path, v)
		if err != nil {
			return err
		}
		return o.printVerified(cmd, r)
	}
	return cmd
}

func (o *options) printVerified(cmd *cobra.Command, r audit.Result) error {
	return o.print(cmd, r, func(w io.Writer) {
		if r.Events > 0 {
			fmt.Fprintf(w, "The log is whole: events %d to %d, and %d checkpoints agree with them.\n", r.From, r.Events-1, r.Checkpoints)
		}
		if r.Events > r.Signed {
			fmt.Fprintf(w, "The newest checkpoint signs the first %d; the others are not signed yet.\n", r.Signed)
		}
		if r.Torn > 0 {
			fmt.Fprintf(w, "An event is being written, or was cut short by a crash: %d bytes.\n", r.Torn)
		}
		if r.Receipt != nil {
			fmt.Fprintf(w, "The receipt is of this event, and proves that it was recorded:\n  %s\n", eventText(r.Receipt))
		}
		fmt.Fprintf(w, "log          %s\n", r.Origin)
		for _, f := range r.Fingerprints {
			fmt.Fprintf(w, "fingerprint  %s\n", f)
		}
		if !r.Trusted {
			fmt.Fprintln(w, "The key came with the log: compare the fingerprint with one that was noted elsewhere, or give it with --fingerprint.")
		}
	})
}

func newAuditExport(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "export [DIR]", Short: "Write events up to the newest checkpoint, with what is needed to verify them", Args: cobra.MaximumNArgs(1),
	}
	from := cmd.Flags().Int64("from", 0, "number of the first event")
	out := cmd.Flags().String("out", "", "new file to write (default: standard output)")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		dir, err := o.auditPath(args)
		if err != nil {
			return err
		}
		w := cmd.OutOrStdout()
		if *out != "" {
			f, err := os.OpenFile(*out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return fault.Wrap(fault.Usage, err, "--out")
			}
			defer func() { err = errors.Join(err, f.Close()) }()
			w = f
		}
		events, err := audit.Export(dir, *from, w)
		if err == nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "%d events exported.\n", events)
		}
		return err
	}
	return cmd
}
