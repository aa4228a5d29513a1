package command

import (
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
)

func newKeyCreateMany(o *options) *cobra.Command {
	var in v1.NewKeys
	count := 0
	cmd := &cobra.Command{
		Use: "create-many", Short: "Have the machine make many business keys with neighbouring indexes", Args: cobra.NoArgs,
		Long: `Have the machine make many business keys with neighbouring indexes.

The keys have the indexes from --index on, and the names NAME-INDEX. They are stored some
at a time: where one cannot be made, those before it stay, and the command says how many.`,
		Example: "  trikey key create-many --index 100000 --count 5000 --name group",
	}
	settings := keySettings(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if in.KeySettings, err = settings(); err != nil {
			return err
		}
		if count < 1 || uint64(in.Index)+uint64(count) > 1<<32 {
			return fault.New(fault.Usage, "--count %d from index %d on is not a range of key indexes, which end at %d", count, in.Index, uint32(1<<32-1))
		}
		total := v1.NewKeysMade{From: in.Index}
		for total.Made < count && err == nil {
			var out v1.NewKeysMade
			in.Index, in.Count = total.From+uint32(total.Made), min(kms.MaxNewKeys, count-total.Made)
			if err = o.admin(cmd.Context(), http.MethodPost, "key-batches", in, &out); err == nil {
				total.To, total.Made = out.To, total.Made+out.Made
				bar(cmd, "Making keys", total.Made, count)
			}
		}
		if err != nil {
			return fault.Wrap(fault.CodeOf(err), err, "%d keys from index %d on were made before those of the call that failed", total.Made, total.From)
		}
		return o.print(cmd, total, func(w io.Writer) { fmt.Fprintf(w, "%d keys, index %d to %d\n", total.Made, total.From, total.To) })
	}
	newKeyFlags(cmd, &in.NewKey)
	cmd.Flags().BoolVar(&in.PreActive, "pre-active", false, "they seal only after trikey key activate")
	cmd.Flags().IntVar(&count, "count", 0, "how many, required")
	_, _ = cmd.MarkFlagRequired("count"), cmd.MarkFlagRequired("index")
	return cmd
}
