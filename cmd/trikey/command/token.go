package command

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
)

func newToken(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Access tokens: inspect, revoke, revoke-app, revoke-user, revoke-person",
		Long: `Access tokens: look at one, and revoke one or many.

A token is read from standard input, or from --file: on a command line others could
see it. A revocation holds on every node within a second, and until the tokens that
it stops have expired.`,
	}
	cmd.AddCommand(newTokenInspect(o), newTokenRevoke(o),
		o.tokensRevoked("revoke-app APP", "Revoke every token of an app and its users that was issued up to now", 1, func(args []string) v1.RevokeTokens {
			return v1.RevokeTokens{App: args[0]}
		}),
		o.tokensRevoked("revoke-user APP USER", "Revoke every token that an app made for a user up to now", 2, func(args []string) v1.RevokeTokens {
			return v1.RevokeTokens{App: args[0], User: args[1]}
		}),
		o.tokensRevoked("revoke-person NAME", "Revoke every token of an administrator or auditor that was issued up to now", 1, func(args []string) v1.RevokeTokens {
			return v1.RevokeTokens{Person: args[0]}
		}))
	return cmd
}

// maxToken bounds what is read as a token.
const maxToken = 64 << 10

// readToken reads a token from a file, or from standard input.
func readToken(cmd *cobra.Command, file string) (v1.TokenRef, error) {
	in := cmd.InOrStdin()
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return v1.TokenRef{}, fault.Wrap(fault.Usage, err, "the token cannot be read")
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxToken))
	if err != nil {
		return v1.TokenRef{}, fault.Wrap(fault.Usage, err, "the token cannot be read")
	}
	t := strings.TrimSpace(string(raw))
	if t == "" {
		return v1.TokenRef{}, fault.New(fault.Usage, "no token: give it on standard input, or in a file with --file")
	}
	return v1.TokenRef{Token: t}, nil
}

func newTokenInspect(o *options) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "inspect", Short: "Show what a token says that this service issued, and whether it is good now", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := readToken(cmd, file)
			if err != nil {
				return err
			}
			var out v1.AdminToken
			if err := o.admin(cmd.Context(), http.MethodPost, "tokens/inspect", in, &out); err != nil {
				return err
			}
			return o.print(cmd, out, func(w io.Writer) {
				state := "good"
				if !out.Active {
					state = out.Why
				}
				fmt.Fprintf(w, "state    %s\nclass    %s\nsubject  %s\nclient   %s\nscope    %s\nid       %s\nissued   %s\nexpires  %s\n", state, out.Class, out.Subject,
					out.ClientID, out.Scope, out.ID, date(time.Unix(out.Issued, 0)), date(time.Unix(out.Expires, 0)))
			})
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "file with the token; standard input without it")
	return cmd
}

func newTokenRevoke(o *options) *cobra.Command {
	var file, id string
	cmd := &cobra.Command{
		Use: "revoke", Short: "Revoke one token", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in := v1.TokenRef{ID: id}
			if id == "" {
				var err error
				if in, err = readToken(cmd, file); err != nil {
					return err
				}
			}
			return o.admin(cmd.Context(), http.MethodPost, "tokens/revoke", in, nil)
		},
	}
	cmd.Flags().StringVar(&id, "id", "", "the token's id instead (jti), as the audit log has it")
	cmd.Flags().StringVar(&file, "file", "", "file with the token; standard input without it")
	cmd.MarkFlagsMutuallyExclusive("file", "id")
	return cmd
}

// tokensRevoked is a command that revokes all tokens of somebody.
func (o *options) tokensRevoked(use, short string, args int, of func([]string) v1.RevokeTokens) *cobra.Command {
	verb, _, _ := strings.Cut(use, " ")
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(args),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.admin(cmd.Context(), http.MethodPost, "tokens/"+verb, of(args), nil)
		},
	}
}
