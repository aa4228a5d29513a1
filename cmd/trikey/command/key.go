package command

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/hsm/alg"
)

func newKey(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Business keys: create, list, show, rotate; migrate and count what they sealed"}
	cmd.AddCommand(newKeyCreate(o), newKeyList(o), newKeyShow(o), newKeyRotate(o), newKeyMigrate(o), newKeyCensus(o))
	return cmd
}

func newKeyCreate(o *options) *cobra.Command {
	var in v1.NewKey
	cmd := &cobra.Command{
		Use: "create", Short: "Have the machine make a business key under an index and a name", Args: cobra.NoArgs,
		Example: "  trikey key create --index 7 --name chat --algorithm aes-256-gcm",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out v1.AdminKey
			if err := o.admin(cmd.Context(), http.MethodPost, "keys", in, &out); err != nil {
				return err
			}
			return o.printKey(cmd, out)
		},
	}
	cmd.Flags().Uint32Var(&in.Index, "index", 0, "key index, 1 to 4294967295 (default: the lowest that is free)")
	cmd.Flags().StringVar(&in.Name, "name", "", "name (default: key-INDEX)")
	cmd.Flags().StringVar(&in.Algorithm, "algorithm", alg.AES256GCM.String(), "one of "+strings.Join(alg.Names(), ", "))
	_ = cmd.RegisterFlagCompletionFunc("algorithm", cobra.FixedCompletions(alg.Names(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func newKeyList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the business keys", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out v1.Batch[v1.AdminKey]
			if err := o.admin(cmd.Context(), http.MethodGet, "keys", nil, &out); err != nil {
				return err
			}
			return o.print(cmd, out.Items, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "INDEX\tNAME\tVERSION\tALGORITHM\tSTATE\tKEY CHECK\tCREATED")
				for _, k := range out.Items {
					fmt.Fprintf(t, "%d\t%s\t%d\t%s\t%s\t%s\t%s\n", k.Index, k.Name, k.Version, k.Algorithm, k.State, k.KCV, date(k.Created))
				}
				_ = t.Flush()
			})
		},
	}
}

func newKeyShow(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "show KEY", Short: "Show a business key, by index or name, wrapped", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var out v1.AdminKey
			if err := o.admin(cmd.Context(), http.MethodGet, "keys/"+url.PathEscape(args[0]), nil, &out); err != nil {
				return err
			}
			return o.printKey(cmd, out)
		},
	}
}

func newKeyRotate(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "rotate KEY", Short: "Give a business key a new version; older ones keep opening what they sealed", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var out v1.AdminKey
			if err := o.admin(cmd.Context(), http.MethodPost, "keys/"+url.PathEscape(args[0])+"/rotate", nil, &out); err != nil {
				return err
			}
			return o.printKey(cmd, out)
		},
	}
}

func (o *options) printKey(cmd *cobra.Command, k v1.AdminKey) error {
	return o.print(cmd, k, func(w io.Writer) {
		fmt.Fprintf(w, "key %d %q, %s, %s\n", k.Index, k.Name, k.Algorithm, k.State)
		for _, v := range k.Versions {
			fmt.Fprintf(w, "  version %d  %s  %s  %s\n    wrapped %s\n", v.Version, v.State, v.KCV, date(v.Created), v.Wrapped)
		}
	})
}

func date(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }
