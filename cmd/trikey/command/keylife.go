package command

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
)

// keySettings adds the flags of a key's settings to a command, and returns what reads
// those that were given.
func keySettings(cmd *cobra.Command) func() (v1.KeySettings, error) {
	f := cmd.Flags()
	description := f.String("description", "", "what the key is for, one line")
	labels := f.StringArray("label", nil, "NAME=VALUE (repeatable); an empty value takes it away")
	owner := f.String("owner", "", "app that the key belongs to: no other can be granted it")
	rotate := f.String("rotate", "", "make a new version each 24h, 7d, …; 0: no more")
	rotateAfter := f.Uint64("rotate-after", 0, "make a new version after so many sealings; 0: no more")
	retain := f.String("retain", "", "destroy a version 7d, 90d, … after its last sealing; 0: never")
	require := f.String("require-context", "", "context fields that sealing needs: 'app,chat_type:enum(dm|group),revision:int'")
	strict := f.Bool("strict-context", false, "take no other context fields")
	return func() (in v1.KeySettings, err error) {
		for name, field := range map[string]struct {
			into  **string
			value *string
		}{
			"description": {&in.Description, description}, "owner": {&in.Owner, owner}, "rotate": {&in.Rotate, rotate},
			"retain": {&in.Retain, retain}, "require-context": {&in.RequireContext, require},
		} {
			if f.Changed(name) {
				*field.into = field.value
			}
		}
		if f.Changed("rotate-after") {
			in.RotateAfter = rotateAfter
		}
		if f.Changed("strict-context") {
			in.StrictContext = strict
		}
		for _, l := range *labels {
			name, value, ok := strings.Cut(l, "=")
			if !ok {
				return in, fault.New(fault.Usage, "--label %q is not of the form NAME=VALUE", l)
			}
			if in.Labels == nil {
				in.Labels = map[string]string{}
			}
			in.Labels[name] = value
		}
		return in, nil
	}
}

func newKeyUpdate(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "update KEY", Short: "Change what was said of a business key; what is not given stays", Args: cobra.ExactArgs(1),
		Example: "  trikey key update chat --rotate 24h --retain 90d",
	}
	settings := keySettings(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in, err := settings()
		if err != nil {
			return err
		}
		var out v1.AdminKey
		if err := o.admin(cmd.Context(), http.MethodPatch, "keys/"+url.PathEscape(args[0]), in, &out); err != nil {
			return err
		}
		return o.printKey(cmd, out)
	}
	return cmd
}

// keyOrders are the commands that order something about a key's life.
func keyOrders(o *options) []*cobra.Command {
	order := func(use, short string, flags func(cmd *cobra.Command, in *v1.KeyOrder)) *cobra.Command {
		var in v1.KeyOrder
		verb := use
		cmd := &cobra.Command{
			Use: use + " KEY", Short: short, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				var out v1.AdminKey
				if err := o.admin(cmd.Context(), http.MethodPost, "keys/"+url.PathEscape(args[0])+"/"+verb, in, &out); err != nil {
					return err
				}
				return o.printKey(cmd, out)
			},
		}
		if flags != nil {
			flags(cmd, &in)
		}
		return cmd
	}
	version := func(cmd *cobra.Command, in *v1.KeyOrder) {
		cmd.Flags().Uint32Var(&in.Version, "version", 0, "this version only (default: the whole key)")
	}
	return []*cobra.Command{
		order("activate", "Have a key that was made --pre-active seal from now on", nil),
		order("suspend", "Refuse a key, for sealing and opening, until it is resumed", nil),
		order("resume", "End a key's suspension", nil),
		order("deactivate", "Have a key open but no longer seal; only trikey key rotate makes it seal again", version),
		order("compromise", "Note that a key is no longer secret: it opens only under the grant decrypt-compromised", version),
		order("schedule-destroy", "Order a key's destruction in 7 to 30 days; it is refused until then", func(cmd *cobra.Command, in *v1.KeyOrder) {
			version(cmd, in)
			cmd.Flags().StringVar(&in.EvenIfUsed, "even-if-used", "", "why it shall be destroyed though a saved census finds it in use; recorded in the audit")
			cmd.Flags().IntVar(&in.Days, "days", kms.DefaultDestroyDays, fmt.Sprintf("from %d to %d", kms.MinDestroyDays, kms.MaxDestroyDays))
		}),
		order("cancel-destroy", "Take the order of a key's destruction back", version),
		order("hold", "Put a key on legal hold: nothing of it is destroyed", func(cmd *cobra.Command, in *v1.KeyOrder) {
			cmd.Flags().StringVar(&in.Why, "why", "", "what the hold is for, as the case's number; required")
			_ = cmd.MarkFlagRequired("why")
		}),
		order("release", "End a key's legal hold; what was due meanwhile is destroyed", nil),
	}
}

func newKeyReserve(o *options) *cobra.Command {
	var in v1.Reservation
	cmd := &cobra.Command{
		Use: "reserve [RANGE]", Short: "Keep a range of key indexes for one app; without a range, list those there are", Args: cobra.MaximumNArgs(1),
		Example: "  trikey key reserve 100-199 --app im",
		RunE: func(cmd *cobra.Command, args []string) error {
			var out v1.Batch[v1.Reservation]
			method, body := http.MethodGet, any(nil)
			if len(args) == 1 {
				in.Range = args[0]
				method, body = http.MethodPost, in
				if in.Remove == (in.App != "") {
					return fault.New(fault.Usage, "give either --app APP or --remove with the range")
				}
			}
			if err := o.admin(cmd.Context(), method, "key-ranges", body, &out); err != nil {
				return err
			}
			return o.print(cmd, out.Items, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "RANGE\tAPP")
				for _, r := range out.Items {
					fmt.Fprintf(t, "%s\t%s\n", r.Range, r.App)
				}
				_ = t.Flush()
			})
		},
	}
	cmd.Flags().StringVar(&in.App, "app", "", "app that keys there must be owned by")
	cmd.Flags().BoolVar(&in.Remove, "remove", false, "give the range up")
	return cmd
}

func newKeyCertificates(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "certificates KEY", Short: "Show what certifies the destruction of a key's versions", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var out v1.Batch[kms.Certificate]
			if err := o.admin(cmd.Context(), http.MethodGet, "keys/"+url.PathEscape(args[0])+"/certificates", nil, &out); err != nil {
				return err
			}
			return o.print(cmd, out.Items, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "KEY\tVERSION\tKEY CHECK\tCREATED\tDESTROYED\tWHY\tHOLD\tSIGNED BY")
				for _, c := range out.Items {
					fmt.Fprintf(t, "%d\t%d\t%s\t%s\t%s\t%s\t%s\t%.16s\n",
						c.Index, c.Version, c.KCV, date(c.Created), date(c.Destroyed), c.Why, c.Hold, c.Fingerprint)
				}
				_ = t.Flush()
			})
		},
	}
}

func newCheckCertificate(o *options) *cobra.Command {
	var fingerprint string
	cmd := &cobra.Command{
		Use: "check-certificates FILE", Short: "Check the signatures of certificates (key certificates -o json), without a service", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := os.ReadFile(args[0])
			if err != nil {
				return fault.Wrap(fault.NotFound, err, "the certificates")
			}
			var all []kms.Certificate
			if err := json.Unmarshal(raw, &all, json.RejectUnknownMembers(true)); err != nil {
				return fault.Wrap(fault.RecordDamaged, err, "%s is not a list of certificates", args[0])
			}
			if len(all) == 0 {
				return fault.New(fault.RecordDamaged, "%s has no certificate in it", args[0])
			}
			for _, c := range all {
				if err := c.Check(fingerprint); err != nil {
					return fault.Wrap(fault.CodeOf(err), err, "key %d version %d", c.Index, c.Version)
				}
			}
			return o.print(cmd, map[string]int{"verified": len(all)}, func(w io.Writer) { fmt.Fprintf(w, "%d certificates are as the machine signed them\n", len(all)) })
		},
	}
	cmd.Flags().StringVar(&fingerprint, "fingerprint", "", "of the machine that must have signed them")
	return cmd
}
