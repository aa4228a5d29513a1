// Package command is the trikey command line: one file a verb. Commands on the
// service's own host talk to its unix sockets; those of IM services go through the
// SDK, as their programs do.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/internal/fault"
)

// version is set by the linker.
var version = "dev"

// options are what every command takes.
type options struct {
	config  string
	output  string
	receipt string // file for the receipt of a change

	started bool // a command has begun: what fails now is no usage error
}

func (o *options) load(flags map[string]string) (*config.Config, error) {
	return config.Load(o.config, flags)
}

// Main runs the command line and returns its exit code.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := &options{}
	root := newRoot(o)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return fault.ExitDone
	}
	if w := (*waits)(nil); errors.As(err, &w) && o.output == "json" {
		_ = o.print(root, w.Approval, nil)
	}
	fmt.Fprintf(os.Stderr, "trikey: %v\n", err)
	if !o.started {
		return fault.ExitUsage
	}
	return fault.CodeOf(err).Exit()
}

func newRoot(o *options) *cobra.Command {
	root := &cobra.Command{
		Use:   "trikey",
		Short: "Trikey (三钥): the key-management service and crypto machine behind a chat server",
		Long: `Trikey (三钥) keeps every message of a chat service as ciphertext inside its servers.

Three key cards open the crypto machine; administrators make business keys by
index; services encrypt, decrypt and re-encrypt by index.

  trikey demo        shows all of it in a directory that it removes again
  trikey serve       runs the service with its machine

Exit codes: 0 done, 1 failed, 2 usage, 3 sealed or unavailable, 4 refused,
5 not found, 6 verification failed.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&o.config, "config", "", "configuration file (default: TRIKEY_CONFIG, ./trikey.yaml or /etc/trikey/trikey.yaml)")
	root.PersistentFlags().StringVar(&o.receipt, "save-receipt", "", "new file for the audit log's receipt of the change that the command makes")
	root.PersistentFlags().String(langFlag, "", "language of ceremonies: en or zh (default: from LANG)")
	root.PersistentFlags().StringVarP(&o.output, "output", "o", defaultOutput(), "table or json")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if o.output != "table" && o.output != "json" {
			return fault.New(fault.Usage, "--output is table or json, not %q", o.output)
		}
		if l := cmd.Flag(langFlag).Value.String(); l != "" && l != "en" && l != "zh" {
			return fault.New(fault.Usage, "--lang is en or zh, not %q", l)
		}
		return nil
	}
	root.AddCommand(newServe(o), newMachineCmd(o), newCard(o), newKey(o), newApp(o), newToken(o), newStore(o), newEncrypt(o), newDecrypt(o), newReencrypt(o),
		newAdminCmd(o), newLogin(o), newLogout(o), newWhoami(o), newApprove(o),
		newInspect(o), newAudit(o), newDoctor(o), newDemo(), newVersion(o))
	o.track(root)
	return root
}

// track notes when a command begins: whatever fails before that is about how it was
// called. A group without a command shows its help.
func (o *options) track(cmd *cobra.Command) {
	run := cmd.RunE
	if run == nil {
		run = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fault.New(fault.Usage, "unknown command %q; see %s --help", args[0], cmd.CommandPath())
			}
			return cmd.Help()
		}
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.started = true
		return run(cmd, args)
	}
	for _, sub := range cmd.Commands() {
		o.track(sub)
	}
}

func defaultOutput() string {
	if f := os.Getenv("TRIKEY_FORMAT"); f != "" {
		return f
	}
	return "table"
}

// print writes a result, as JSON or as the table that f writes.
func (o *options) print(cmd *cobra.Command, value any, table func(w io.Writer)) error {
	w := cmd.OutOrStdout()
	if o.output == "json" {
		raw, err := json.Marshal(value, jsontext.WithIndent("  "))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s\n", raw)
		return err
	}
	table(w)
	return nil
}

func newVersion(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.print(cmd, map[string]string{"version": version}, func(w io.Writer) { fmt.Fprintln(w, "trikey", version) })
		},
	}
}
