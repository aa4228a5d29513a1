package command

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
)

func newExportRecord(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "export-record", Short: "Write the machine's public record, for another machine of the same root key", Args: cobra.NoArgs,
		Long: `Write the machine's public record, for another machine of the same root key
(trikey machine adopt). It says which dealing the cards are of; it opens nothing.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := o.load(nil)
			if err != nil {
				return err
			}
			r, err := machineRecord(cfg)
			if err != nil {
				return err
			}
			raw, err := json.Marshal(r, jsontext.WithIndent("  "))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", raw)
			return err
		},
	}
}

func newAdopt(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "adopt --record FILE --kcv KCV", Short: "Have the cards of another machine open this one", Args: cobra.NoArgs,
		Long: `Have the cards of another machine open this one: it becomes a second machine of the
same root key, with a chip of its own, for the same services. Run it while the machine does
not run. Afterwards the cards unseal it, as they do the first.

FILE is what trikey machine export-record wrote at the other machine; KCV is the key check
value that its status shows, which must be the record's. A blank machine takes any record;
one that has a record takes a later one of the same machine, after a rotation or resplit.`,
	}
	file := cmd.Flags().String("record", "", "what trikey machine export-record wrote at the other machine")
	kcv := cmd.Flags().String("kcv", "", "key check value that the other machine shows")
	_, _ = cmd.MarkFlagRequired("record"), cmd.MarkFlagRequired("kcv") // they exist
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		cfg, err := o.load(nil)
		if err != nil {
			return err
		}
		raw, err := os.ReadFile(*file)
		if err != nil {
			return fault.Wrap(fault.Usage, err, "the record")
		}
		var r hsm.Record
		if err := json.Unmarshal(raw, &r, json.RejectUnknownMembers(true)); err != nil {
			return fault.Wrap(fault.RecordDamaged, err, "%s is not a machine's record", *file)
		}
		n, err := newMachine(cmd.Context(), cfg)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, n.Close()) }()
		if err := n.adopt(cmd.Context(), r, *kcv); err != nil {
			return err
		}
		return o.print(cmd, map[string]any{"result": "ok", "kcv": r.KCV, "need": r.Threshold}, func(w io.Writer) {
			fmt.Fprintf(w, "This machine is one of the root key with check value %s now. Start it (trikey machine serve); any %d of its %d cards open it.\n",
				r.KCV, r.Threshold, r.Shares)
		})
	}
	return cmd
}
