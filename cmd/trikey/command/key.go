package command

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
)

func newKey(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Business keys: their making, their life and their end"}
	cmd.AddCommand(newKeyCreate(o), newKeyCreateMany(o), newKeyUpdate(o), newKeyList(o), newKeyShow(o), newKeyRotate(o), newKeyImport(o), newKeyExport(o), newKeyMigrate(o), newKeyCensus(o), newKeyCensuses(o), newKeyReserve(o), newKeyCertificates(o), newCheckCertificate(o))
	cmd.AddCommand(keyOrders(o)...)
	return cmd
}

func newKeyCreate(o *options) *cobra.Command {
	var in v1.NewKey
	cmd := &cobra.Command{
		Use: "create", Short: "Have the machine make a business key under an index and a name", Args: cobra.NoArgs,
		Example: `  trikey key create --index 7 --name chat --algorithm aes-256-gcm
  trikey key create --index 8 --name chat-daily --rotate 24h --retain 7d --require-context 'app,chat_type:enum(dm|group),conversation'
  trikey key create --index 40 --name tokens --purpose sign --publish`,
	}
	settings := keySettings(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if in.KeySettings, err = settings(); err != nil {
			return err
		}
		var out v1.AdminKey
		if err := o.admin(cmd.Context(), http.MethodPost, "keys", in, &out); err != nil {
			return err
		}
		return o.printKey(cmd, out)
	}
	newKeyFlags(cmd, &in)
	cmd.Flags().BoolVar(&in.PreActive, "pre-active", false, "it seals only after trikey key activate")
	return cmd
}

// newKeyFlags are the flags of what a new key shall be.
func newKeyFlags(cmd *cobra.Command, in *v1.NewKey) {
	f := cmd.Flags()
	f.Uint32Var(&in.Index, "index", 0, "key index, 1 to 4294967295 (default: the lowest that is free)")
	f.StringVar(&in.Name, "name", "", "name (default: key-INDEX)")
	f.StringVar(&in.Purpose, "purpose", hsm.PurposeSeal.String(), "what the key is for, and nothing else: "+strings.Join(hsm.PurposeNames(), ", "))
	f.StringVar(&in.Algorithm, "algorithm", "", "one of "+strings.Join(alg.Names(), ", ")+" (default: the purpose's usual, "+alg.AES256GCM.String()+" to seal)")
	f.BoolVar(&in.Exportable, "exportable", false, "bind into the key that it may be exported; it cannot be changed later")
	f.BoolVar(&in.Publish, "publish", false, "of a key that signs: put its public keys into /.well-known/jwks.json")
	_ = cmd.RegisterFlagCompletionFunc("algorithm", cobra.FixedCompletions(alg.Names(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("purpose", cobra.FixedCompletions(hsm.PurposeNames(), cobra.ShellCompDirectiveNoFileComp))
}

func newKeyList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the business keys", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := v1.KeyPage{Items: []v1.AdminKey{}}
			for more := true; more; more = out.Next != 0 {
				page := v1.KeyPage{}
				if err := o.admin(cmd.Context(), http.MethodGet, fmt.Sprint("keys?from=", out.Next), nil, &page); err != nil {
					return err
				}
				out.Items, out.Next = append(out.Items, page.Items...), page.Next
			}
			return o.print(cmd, out.Items, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "INDEX\tNAME\tVERSION\tPURPOSE\tALGORITHM\tSTATE\tKEY CHECK\tOWNER\tROTATE\tRETAIN\tCREATED")
				for _, k := range out.Items {
					fmt.Fprintf(t, "%d\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
						k.Index, k.Name, k.Version, k.Purpose, k.Algorithm, k.State, k.KCV, orDash(k.Owner), orDash(k.Rotate), orDash(k.Retain), date(k.Created))
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
		fmt.Fprintf(w, "key %d %q, %s, %s, %s\n", k.Index, k.Name, k.Purpose, k.Algorithm, k.State)
		printSettings(w, k)
		for _, v := range k.Versions {
			fmt.Fprintf(w, "  version %d  %s  %s  %s", v.Version, v.State, v.KCV, date(v.Created))
			if v.Seals != 0 || v.Opens != 0 {
				fmt.Fprintf(w, "  sealed %d, opened %d", v.Seals, v.Opens)
			}
			if !v.DestroyAt.IsZero() {
				fmt.Fprintf(w, "  to be destroyed %s", date(v.DestroyAt))
			}
			if !v.Destroyed.IsZero() {
				fmt.Fprintf(w, "  destroyed %s\n", date(v.Destroyed))
				continue
			}
			fmt.Fprintf(w, "\n    wrapped %s\n", v.Wrapped)
		}
		for _, p := range k.Public {
			fmt.Fprintf(w, "  public key of version %d, kid %s\n%s", p.Version, p.KeyID, p.PEM)
		}
	})
}

// printSettings prints what was said of a key, and what follows for its messages.
func printSettings(w io.Writer, k v1.AdminKey) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-12s "+format+"\n", append([]any{name}, args...)...)
	}
	if k.Description != "" {
		line("description", "%s", k.Description)
	}
	for _, name := range slices.Sorted(maps.Keys(k.Labels)) {
		line("label", "%s=%s", name, k.Labels[name])
	}
	if k.Owner != "" {
		line("owner", "%s", k.Owner)
	}
	if k.Rotate != "" {
		next := "not while it is " + k.State
		if !k.Rotates.IsZero() {
			next = date(k.Rotates)
		}
		line("rotate", "every %s, next %s", k.Rotate, next)
	}
	if k.RotateAfter != 0 {
		line("rotate", "after %d sealings", k.RotateAfter)
	}
	if k.Retain != "" {
		line("retain", "%s after a version's last sealing", k.Retain)
	}
	if k.RequireContext != "" {
		strict := ""
		if k.StrictContext {
			strict = ", and no other fields"
		}
		line("context", "%s%s", k.RequireContext, strict)
	}
	if k.Hold != nil {
		line("legal hold", "since %s by %s: %s", date(k.Hold.Since), k.Hold.By, k.Hold.Why)
	}
	if !k.DestroyAt.IsZero() {
		line("destroyed", "on %s, unless that is cancelled", date(k.DestroyAt))
	}
	if !k.LastUsed.IsZero() {
		line("last used", "%s", date(k.LastUsed))
	}
	for _, s := range k.Opens {
		until := "now"
		if !s.Until.IsZero() {
			until = date(s.Until)
		}
		line("opens", "messages sealed from %s to %s", date(s.From), until)
	}
	if len(k.Opens) == 0 && len(k.Versions) > 0 {
		line("opens", "no messages")
	}
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func date(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }
