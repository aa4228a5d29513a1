package command

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
)

func newApprove(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "approve", Short: "What others have asked for and you may approve: list, show, grant, refuse",
		Long: `What others have asked for and another person must approve: destruction of keys,
retention, the release of legal holds, what lets apps do more, new people, resets. grant
shows exactly what will happen and asks for a yes; it then happens at once, and once.`,
	}
	cmd.AddCommand(newApproveList(o), newApproveShow(o), newApproveGrant(o), newApproveRefuse(o))
	return cmd
}

func newApproveList(o *options) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "list", Short: "List what waits for approval", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out v1.Batch[v1.Approval]
			if err := o.admin(cmd.Context(), http.MethodGet, "approvals", nil, &out); err != nil {
				return err
			}
			shown := []v1.Approval{}
			for _, a := range out.Items {
				if all || a.State == "waiting" {
					shown = append(shown, a)
				}
			}
			return o.print(cmd, shown, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "REQUEST\tSTATE\tBY\tUNTIL\tWILL")
				for _, a := range shown {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", a.ID, a.State, a.By, date(a.Expires), a.What)
				}
				_ = t.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "those of before too")
	return cmd
}

func (o *options) approval(cmd *cobra.Command, id string) (a v1.Approval, err error) {
	err = o.admin(cmd.Context(), http.MethodGet, "approvals/"+url.PathEscape(id), nil, &a)
	return a, err
}

func newApproveShow(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show exactly what will happen", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := o.approval(cmd, args[0])
			if err != nil {
				return err
			}
			return o.print(cmd, a, func(w io.Writer) { tellApproval(w, a) })
		},
	}
}

func tellApproval(w io.Writer, a v1.Approval) {
	fmt.Fprintf(w, "request    %s\nwill       %s\nby         %s, %s\nstate      %s\nuntil      %s\ncall       %s %s\n",
		a.ID, a.What, a.By, date(a.Created), a.State, date(a.Expires), a.Method, a.Path)
	if a.Body != "" {
		fmt.Fprintf(w, "body       %s\n", a.Body)
	}
	fmt.Fprintf(w, "digest     %s\n", a.Digest)
	if a.Decider != "" {
		fmt.Fprintf(w, "decided    by %s, %s\n", a.Decider, date(a.Decided))
	}
	if a.Why != "" {
		fmt.Fprintf(w, "why        %s\n", a.Why)
	}
	if a.Outcome != "" {
		fmt.Fprintf(w, "outcome    %s\n", a.Outcome)
	}
}

func newApproveGrant(o *options) *cobra.Command {
	var digest, out string
	cmd := &cobra.Command{
		Use: "grant ID", Short: "Have it happen, now", Args: cobra.ExactArgs(1),
		Long: `Have it happen, now. At a terminal it is shown, and happens after a yes. Where there is no
terminal, --digest says what was seen (trikey approve show).`,
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := o.approval(cmd, args[0])
			if err != nil {
				return err
			}
			if digest == "" {
				if digest, err = seen(cmd, a); err != nil {
					return err
				}
			}
			if out != "" {
				if err := vacant(out); err != nil {
					return err
				}
			}
			if err := o.admin(cmd.Context(), http.MethodPost, "approvals/"+url.PathEscape(a.ID)+"/grant", v1.Grant{Digest: digest}, &a); err != nil {
				return err
			}
			if out != "" && a.State == "done" {
				if err := saveGranted(out, a); err != nil {
					return err
				}
			}
			return o.printGranted(cmd, a)
		},
	}
	cmd.Flags().StringVar(&digest, "digest", "", "of what you approve, where there is no terminal to show it on")
	cmd.Flags().StringVar(&out, "out", "", "of the export of a key: file for the wrapped key; without it the answer has it in base64")
	return cmd
}

// seen shows a request and returns its digest when the person says yes.
func seen(cmd *cobra.Command, a v1.Approval) (string, error) {
	ask := newAsker(cmd)
	if !ask.terminal {
		return "", fault.New(fault.Usage, "there is no terminal to show the request on; look at it (trikey approve show %s) and give --digest", a.ID)
	}
	tellApproval(cmd.ErrOrStderr(), a)
	yes, err := ask.line("Type yes to have it happen: ")
	if err == nil && yes != "yes" {
		err = fault.New(fault.Usage, "nothing is done: %q was typed, not yes", yes)
	}
	return a.Digest, err
}

func (o *options) printGranted(cmd *cobra.Command, a v1.Approval) error {
	result, err := json.Marshal(a.Result)
	if err != nil {
		return err
	}
	if a.State != "done" {
		var p fault.Problem
		if err := json.Unmarshal(result, &p); err != nil || p.Code == "" {
			p.Code = fault.Code(a.Outcome)
		}
		return fault.Wrap(p.Code, p.Err(), "it was granted, and failed")
	}
	return o.print(cmd, a, func(w io.Writer) {
		var i v1.Invitation
		if json.Unmarshal(result, &i) == nil && i.Half != "" {
			fmt.Fprintf(w, "Done: %s, %s, can enrol until %s.\nThe other half of the code: %s\nTell it to the new person, and to nobody else; it is not shown again.\n",
				i.Name, i.Role, date(i.Expires), i.Half)
			return
		}
		fmt.Fprintf(w, "Done: %s\n", a.What)
		value := jsontext.Value(result)
		if value.Indent() == nil && len(value) > 0 && value.Kind() == '{' {
			fmt.Fprintf(w, "%s\n", value)
		}
	})
}

func newApproveRefuse(o *options) *cobra.Command {
	var in v1.Refusal
	cmd := &cobra.Command{
		Use: "refuse ID", Short: "Refuse it, or take back what you have asked for", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var a v1.Approval
			if err := o.admin(cmd.Context(), http.MethodPost, "approvals/"+url.PathEscape(args[0])+"/refuse", in, &a); err != nil {
				return err
			}
			return o.print(cmd, a, func(w io.Writer) { tellApproval(w, a) })
		},
	}
	cmd.Flags().StringVar(&in.Why, "why", "", "reason, for who has asked")
	return cmd
}
