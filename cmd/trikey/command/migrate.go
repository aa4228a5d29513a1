package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/cmd/trikey/migrate"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/sdk"
)

func newKeyMigrate(o *options) *cobra.Command {
	var cfg migrate.Config
	var from, to, report string
	var context, toContext []string
	cmd := &cobra.Command{
		Use: "migrate", Short: "Re-encrypt files of ciphertexts under another key, or the newest version of their own", Args: cobra.NoArgs,
		Long: `Re-encrypt files of ciphertexts, in batches; no plaintext leaves the machine.

A file is JSON lines, with the ciphertext in --field, or CSV with a header (*.csv),
with the ciphertext in --column. Lines keep every other byte. Ciphertexts of other
keys, and lines without one, are copied; a line that fails is copied too and listed
in OUT.failed by its number.

The job may be killed at any moment: the same command goes on where it was, and
neither loses a line nor has one twice. Its checkpoints, OUT.migrate.json, stay; once
complete, the same command shows its report again.

The context of each line is made of constants, --context app=im, and of what the line
has in its fields or columns, --context conversation=.conv_id. A constant that begins
with a dot is written with two.
` + callerHelp,
		Example: "  trikey key migrate --from 7 --to 8 --in messages --out migrated --field body.content --context conversation=.conv_id",
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if cfg.Context, err = migrate.ParseBindings(context); err != nil {
			return err
		}
		if cmd.Flags().Changed("to-context") {
			if cfg.ToContext, err = migrate.ParseBindings(toContext); err != nil {
				return err
			}
		}
		client, err := o.client()
		if err != nil {
			return err
		}
		defer client.Close()
		cfg.Client, cfg.To = client, sdk.Key(to)
		if cfg.From, err = indexOf(cmd.Context(), client, sdk.Key(from)); err != nil {
			return err
		}
		return o.migrate(cmd, cfg, report)
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "key index or name whose ciphertexts are re-encrypted, required")
	f.Uint32Var(&cfg.FromVersion, "from-version", 0, "only those of this version (default: any)")
	f.StringVar(&to, "to", "", "key index or name that seals, required; the same as --from brings all to its newest version")
	f.StringVar(&cfg.In, "in", "", "file or directory to read, required")
	f.StringVar(&cfg.Out, "out", "", "file or directory to write, required")
	f.StringVar(&cfg.Field, "field", "ciphertext", "where a JSON line has the ciphertext: a.b, or /a/b")
	f.StringVar(&cfg.Column, "column", "ciphertext", "which column of a CSV file has the ciphertext")
	f.StringArrayVar(&context, "context", nil, "name=value or name=.field that the ciphertexts are bound to (repeatable)")
	f.StringArrayVar(&toContext, "to-context", nil, "the same for the new ciphertexts (repeatable; default: the same context)")
	f.StringVar(&report, "report", "", "file to write the report to, as JSON")
	for _, name := range []string{"from", "to", "in", "out"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

// indexOf returns the index of a key that may be given by name.
func indexOf(ctx context.Context, c *sdk.Client, key sdk.Key) (uint32, error) {
	if index, ok := key.Index(); ok {
		return index, nil
	}
	info, err := c.Key(ctx, key)
	return info.Index, err
}

// migrate runs a job and shows what became of it.
func (o *options) migrate(cmd *cobra.Command, cfg migrate.Config, path string) error {
	size, err := cfg.Size()
	if err != nil {
		return err
	}
	bar := newProgress(cmd.ErrOrStderr(), size)
	cfg.Progress = bar.add
	report, failed := migrate.Run(cmd.Context(), cfg)
	bar.clear()
	if errors.Is(failed, fault.Unavailable) || errors.Is(failed, fault.Sealed) || errors.Is(failed, context.Canceled) {
		failed = fault.Wrap(fault.CodeOf(failed), failed, "stopped after %d lines; the same command goes on from there", report.Lines)
	}
	if path != "" {
		failed = errors.Join(failed, report.Save(path))
	}
	err = o.print(cmd, report, func(w io.Writer) {
		fmt.Fprintf(w, "%d files, %d lines: %d re-encrypted, %d of other keys or versions, %d without a ciphertext, %d failed\n",
			report.Files, report.Lines, report.Reencrypted, report.Skipped, report.Without, report.FailedLines)
		for _, code := range slices.Sorted(maps.Keys(report.Failed)) {
			fmt.Fprintf(w, "  %s  %d\n", code, report.Failed[code])
		}
	})
	if failed == nil && report.FailedLines > 0 {
		failed = fault.New(fault.Conflict, "%d lines were kept as they were, because they failed; OUT.failed says which and why", report.FailedLines)
	}
	return errors.Join(failed, err)
}
