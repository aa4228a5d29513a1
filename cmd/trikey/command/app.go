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
)

const grantForm = "'keys=1-99,200;ops=encrypt,decrypt'"

func newApp(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "app", Short: "Apps that may call: create, list, show, rotate-secret, drop-secret, add-cert, remove-cert, allow-ip, deny-ip, grant, revoke, disable, limit, budget, reopen, unlock"}
	cmd.AddCommand(newAppCreate(o), newAppList(o), newAppShow(o), newAppRotate(o), newAppDropSecret(o), newAppAddCert(o), newAppRemoveCert(o))
	yes := true
	cmd.AddCommand(
		o.appChange("allow-ip NAME CIDR", "Add addresses to an app's whitelist", 2, func(in *v1.ChangeApp, arg string) { in.AllowIP = arg }),
		o.appChange("deny-ip NAME CIDR", "Take addresses off an app's whitelist", 2, func(in *v1.ChangeApp, arg string) { in.DenyIP = arg }),
		o.appChange("grant NAME RULE", "Grant operations on keys: "+grantForm, 2, func(in *v1.ChangeApp, arg string) { in.Grant = arg }),
		o.appChange("revoke NAME RULE", "Revoke operations on keys: "+grantForm, 2, func(in *v1.ChangeApp, arg string) { in.Revoke = arg }),
		o.appChange("disable NAME", "Refuse an app from now on", 1, func(in *v1.ChangeApp, _ string) { in.Disabled = &yes }),
	)
	cmd.AddCommand(o.limitCommands()...)
	return cmd
}

func newAppCreate(o *options) *cobra.Command {
	var in v1.NewApp
	cmd := &cobra.Command{
		Use: "create", Short: "Make an app; its AppSecret is shown this once", Args: cobra.NoArgs,
		Example: "  trikey app create --name im --allow-ip 10.0.0.0/8 --grant 'keys=1-99;ops=encrypt,decrypt,reencrypt-from,reencrypt-to'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out v1.Credentials
			if err := o.admin(cmd.Context(), http.MethodPost, "apps", in, &out); err != nil {
				return err
			}
			if len(in.AllowIP) == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "Note: no address may call yet; add some with trikey app allow-ip %s CIDR.\n", in.Name)
			}
			if len(in.Grants) == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "Note: nothing is granted yet; grant with trikey app grant %s %s.\n", in.Name, grantForm)
			}
			return o.printCredentials(cmd, out)
		},
	}
	cmd.Flags().StringVar(&in.Name, "name", "", "name, required")
	cmd.Flags().StringArrayVar(&in.AllowIP, "allow-ip", nil, "address or CIDR that the app may call from (repeatable)")
	cmd.Flags().StringArrayVar(&in.Grants, "grant", nil, "what the app may do: "+grantForm+" (repeatable)")
	cmd.Flags().StringVar(&in.Expires, "expires", "", expiresHelp)
	_ = cmd.MarkFlagRequired("name")
	return cmd
}

const expiresHelp = "how long the AppSecret is valid, as 90d; empty: without an end"

func (o *options) printCredentials(cmd *cobra.Command, c v1.Credentials) error {
	return o.print(cmd, c, func(w io.Writer) {
		fmt.Fprintf(w, "app        %s\nAppKey     %s\nAppSecret  %s\nKeep the secret now: it is not shown again.\n", c.Name, c.AppKey, c.AppSecret)
	})
}

func newAppRotate(o *options) *cobra.Command {
	var in v1.NewSecret
	cmd := &cobra.Command{
		Use: "rotate-secret NAME", Short: "Make a new AppSecret; the one before stays valid until the next rotation", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var out v1.Credentials
			if err := o.admin(cmd.Context(), http.MethodPost, "apps/"+url.PathEscape(args[0])+"/rotate-secret", in, &out); err != nil {
				return err
			}
			return o.printCredentials(cmd, out)
		},
	}
	cmd.Flags().StringVar(&in.Expires, "expires", "", expiresHelp)
	return cmd
}

func newAppDropSecret(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "drop-secret NAME", Short: "Delete the older of an app's two AppSecrets, when nobody uses it any more", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var out v1.AdminApp
			if err := o.admin(cmd.Context(), http.MethodPost, "apps/"+url.PathEscape(args[0])+"/drop-secret", nil, &out); err != nil {
				return err
			}
			return o.printApp(cmd, out)
		},
	}
}

func newAppList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the apps", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out v1.Batch[v1.AdminApp]
			if err := o.admin(cmd.Context(), http.MethodGet, "apps", nil, &out); err != nil {
				return err
			}
			return o.print(cmd, out.Items, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "NAME\tAPPKEY\tSTATE\tADDRESSES\tSECRETS\tCREATED")
				for _, a := range out.Items {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\n", a.Name, a.AppKey, a.State, strings.Join(a.AllowIP, ","), a.Secrets, date(a.Created))
				}
				_ = t.Flush()
				for _, a := range out.Items {
					for _, warning := range a.Warnings {
						fmt.Fprintf(w, "Warning: %s: %s\n", a.Name, warning)
					}
				}
			})
		},
	}
}

func newAppShow(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show an app's addresses and grants", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var out v1.AdminApp
			if err := o.admin(cmd.Context(), http.MethodGet, "apps/"+url.PathEscape(args[0]), nil, &out); err != nil {
				return err
			}
			return o.printApp(cmd, out)
		},
	}
}

func (o *options) printApp(cmd *cobra.Command, a v1.AdminApp) error {
	return o.print(cmd, a, func(w io.Writer) {
		fmt.Fprintf(w, "app        %s, %s\nAppKey     %s\nsecrets    %d valid, newest of %s\naddresses  %s\n",
			a.Name, a.State, a.AppKey, a.Secrets, date(a.Rotated), orNone(a.AllowIP))
		fmt.Fprintf(w, "grants     %s\n", orNone(a.Grants))
		printHeld(w, a)
		var secrets, pins []string
		for _, s := range a.ValidSecrets {
			secrets = append(secrets, fmt.Sprintf("%d of %s, %s, %s", s.Number, date(s.Created), ends(s.Expires), used(s.Used)))
		}
		for _, c := range a.Certificates {
			pins = append(pins, c.SPKI+" of "+date(c.Added))
		}
		fmt.Fprintf(w, "secret     %s\ncert       %s\n", orNone(secrets), orNone(pins))
		for _, warning := range a.Warnings {
			fmt.Fprintf(w, "Warning: %s\n", warning)
		}
	})
}

func ends(at time.Time) string {
	if at.IsZero() {
		return "without an end"
	}
	return "until " + date(at)
}

// used tells of this node alone, since it was opened.
func used(at time.Time) string {
	if at.IsZero() {
		return "not used here since the machine was opened"
	}
	return "last used here " + at.Local().Format(time.DateTime)
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, "\n           ")
}

// appChange is a command that changes one thing about an app.
func (o *options) appChange(use, short string, args int, set func(in *v1.ChangeApp, arg string)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(args),
		RunE: func(cmd *cobra.Command, args []string) error {
			var in v1.ChangeApp
			set(&in, args[len(args)-1])
			var out v1.AdminApp
			if err := o.admin(cmd.Context(), http.MethodPatch, "apps/"+url.PathEscape(args[0]), in, &out); err != nil {
				return err
			}
			return o.printApp(cmd, out)
		},
	}
}
