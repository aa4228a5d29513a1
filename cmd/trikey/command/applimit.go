package command

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
)

// limitCommands are those about what an app is held to.
func (o *options) limitCommands() []*cobra.Command {
	rate := o.appChange("limit NAME RATE", "Hold an app to a rate: items=500/s,burst=1000; none; default", 2, func(in *v1.ChangeApp, arg string) { in.Limit = arg })
	rate.Example = "  trikey app limit im items=2000/s,burst=5000"
	spend := o.appChange("budget NAME BUDGET", "Bound what an app decrypts in a day: items=N/day,conversations=N/day,age=30d,old=N/day,field=NAME; none", 2,
		func(in *v1.ChangeApp, arg string) { in.Budget = arg })
	spend.Long = `Bound what an app decrypts in a day (UTC). Beyond the budget its decryption, and
nothing else of it, is suspended until it is reopened (trikey app reopen).

  items=N/day           single decryptions
  conversations=N/day   distinct conversations, by the context field "conversation" or
                        the one that field=NAME names
  age=30d               data whose key version ceased to seal that long ago ...
  old=N/day             ... but for so many, none without it`
	spend.Example = "  trikey app budget im items=5000000/day,conversations=20000/day,age=90d,old=1000/day"
	return []*cobra.Command{rate, spend, newAppReopen(o), newAppUnlock(o)}
}

func newAppReopen(o *options) *cobra.Command {
	var in v1.ReopenApp
	cmd := &cobra.Command{
		Use: "reopen NAME", Short: "Let an app decrypt again whose budget was spent", Args: cobra.ExactArgs(1),
		Example: "  trikey app reopen im --why 'export for case 4711, seen by Bao and Chen'",
		RunE:    func(cmd *cobra.Command, args []string) error { return o.appOrder(cmd, args[0], "reopen", in) },
	}
	cmd.Flags().StringVar(&in.Why, "why", "", "reason, for the audit log; required")
	_ = cmd.MarkFlagRequired("why")
	return cmd
}

func newAppUnlock(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "unlock NAME", Short: "Forget an app's failed authentications on this node", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.appOrder(cmd, args[0], "unlock", nil) },
	}
}

func (o *options) appOrder(cmd *cobra.Command, app, verb string, in any) error {
	var out v1.AdminApp
	if err := o.admin(cmd.Context(), http.MethodPost, "apps/"+url.PathEscape(app)+"/"+verb, in, &out); err != nil {
		return err
	}
	return o.printApp(cmd, out)
}

// printHeld prints what an app is held to.
func printHeld(w io.Writer, a v1.AdminApp) {
	if a.Limit != "" {
		fmt.Fprintf(w, "limit      %s\n", a.Limit)
	}
	if a.Budget != "" {
		fmt.Fprintf(w, "budget     %s\n", a.Budget)
	}
	if a.Spent != nil {
		fmt.Fprintf(w, "spent      %d items, %d conversations, %d old; today (UTC), on this node\n", a.Spent.Items, a.Spent.Conversations, a.Spent.Old)
	}
	if a.Suspended != nil {
		fmt.Fprintf(w, "suspended  decryption, since %s: the budget of %s is spent\n", a.Suspended.Time.Format(time.RFC3339), a.Suspended.Why)
	}
}
