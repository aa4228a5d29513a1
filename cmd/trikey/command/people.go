package command

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"

	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/people"
)

func newAdminCmd(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "admin", Short: "People who manage the service: create, list, disable, reset, password",
		Long: `People who manage the service. Each has one role: admins manage keys and apps, officers
manage people, both approve what others ask for, auditors read.

The first of each role is made on the service's own host, by its own user. Afterwards an
officer asks for a person, and another person approves it. A new person enrols with the
two halves of a code: one is told to who asks, the other to who approves (for the first
of a role both are told at once).`,
	}
	cmd.AddCommand(newAdminCreate(o), newAdminReset(o), newAdminList(o), newAdminDisable(o), newAdminBind(o), newAdminPassword(o))
	return cmd
}

func newAdminCreate(o *options) *cobra.Command {
	var in v1.NewPerson
	cmd := &cobra.Command{
		Use: "create --role ROLE NAME", Short: "Invite a person", Args: cobra.ExactArgs(1),
		Example: "  trikey admin create --role admin alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Name = args[0]
			half := people.NewHalf()
			in.Half = people.HalfDigest(half)
			return o.invite(cmd, "people", in, half)
		},
	}
	cmd.Flags().StringVar(&in.Role, "role", "", "admin, officer or auditor, required")
	_ = cmd.MarkFlagRequired("role")
	return cmd
}

func newAdminReset(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "reset NAME", Short: "Have a person enrol anew who has lost password or authenticator", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			half := people.NewHalf()
			return o.invite(cmd, "people/"+url.PathEscape(args[0])+"/reset", v1.ResetPerson{Half: people.HalfDigest(half)}, half)
		},
	}
}

// invited is what create and reset print.
type invited struct {
	v1.Invitation `json:",inline"`
	Own           string `json:"own_half"`
}

// invite sends an invitation of whose code half was drawn here: the service has its digest
// only. Where another person must approve, they are told the other half.
func (o *options) invite(cmd *cobra.Command, path string, in any, half string) error {
	var out v1.Invitation
	err := o.admin(cmd.Context(), http.MethodPost, path, in, &out)
	if fault.CodeOf(err) == fault.ApprovalRequired {
		fmt.Fprintf(cmd.ErrOrStderr(), "Your half of the code: %s\nTell it to the new person, and to nobody else; it is not shown again. Who approves gets the other half.\n", half)
	}
	if err != nil {
		return err
	}
	return o.print(cmd, invited{out, half}, func(w io.Writer) {
		fmt.Fprintf(w, "%s, %s, can enrol until %s (trikey login --enrol) with the code's two halves:\n  %s\n  %s\nThey are not shown again.\n",
			out.Name, out.Role, date(out.Expires), half, out.Half)
	})
}

func newAdminList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the people", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out v1.Batch[v1.Person]
			if err := o.admin(cmd.Context(), http.MethodGet, "people", nil, &out); err != nil {
				return err
			}
			return o.print(cmd, out.Items, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "NAME\tROLE\tSTATE\tCREATED")
				for _, p := range out.Items {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", p.Name, p.Role, p.State, date(p.Created))
				}
				_ = t.Flush()
			})
		},
	}
}

func newAdminDisable(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "disable NAME", Short: "End what a person may do, for good, and their sessions", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var out v1.Person
			if err := o.admin(cmd.Context(), http.MethodPost, "people/"+url.PathEscape(args[0])+"/disable", nil, &out); err != nil {
				return err
			}
			return o.print(cmd, out, func(w io.Writer) { fmt.Fprintf(w, "%s, %s, is %s\n", out.Name, out.Role, out.State) })
		},
	}
}
