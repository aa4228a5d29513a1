package command

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/internal/fault"
)

func newStore(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "store", Short: "The key store: migrate"}
	cmd.AddCommand(newStoreMigrate(o))
	return cmd
}

func newStoreMigrate(o *options) *cobra.Command {
	var from, to string
	var access config.Store
	cmd := &cobra.Command{
		Use:   "migrate --from STORE --to STORE",
		Short: "Copy the key store between a file and etcd, and compare every entry",
		Long: `Copy the key store between a file and etcd, and compare every entry.

STORE is bolt:PATH or etcd:https://HOST:PORT[,https://HOST:PORT...][/PREFIX]. Stop every
service that uses either store first: a file in use is refused, and a source that changes
meanwhile is noticed. The target must be new. What was cut short can be run again, and
goes on; until it is through, no service takes the target for a key store. The source
stays as it is: see that nobody serves from it again.

How to reach etcd is said by the flags, else by the section store of the configuration
that --config names.`,
		Example: "  trikey store migrate --from bolt:data/store.db --to etcd:https://etcd1:2379,https://etcd2:2379 --ca etcd-ca.pem --cert trikey.pem --key trikey.key",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			base := config.Store{Kind: config.StoreBolt}
			if o.config != "" {
				cfg, err := o.load(nil)
				if err != nil {
					return err
				}
				base = cfg.Store
			}
			for _, f := range []struct{ flag, into *string }{
				{&access.CA, &base.CA},
				{&access.Cert, &base.Cert},
				{&access.Key, &base.Key},
				{&access.User, &base.User},
				{&access.PasswordFile, &base.PasswordFile},
			} {
				if *f.flag != "" {
					*f.into = *f.flag
				}
			}
			if from == to {
				return fault.New(fault.Usage, "--from and --to are the same store")
			}
			shown := false
			report, err := migrateStore(cmd.Context(), base, from, to, func(done, total int) {
				shown = bar(cmd, "Copying and comparing entries", done, total)
			})
			if shown {
				fmt.Fprintln(cmd.ErrOrStderr())
			}
			if err != nil {
				return err
			}
			return o.print(cmd, report, func(w io.Writer) {
				fmt.Fprintf(w, "%d entries with %d bytes are in %s, each the same as in %s; %d were copied now.\n",
					report.Entries, report.Bytes, to, from, report.Copied)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "store to copy, required")
	f.StringVar(&to, "to", "", "new store, required")
	f.StringVar(&access.CA, "ca", "", "PEM file with the authority of etcd's certificates")
	f.StringVar(&access.Cert, "cert", "", "PEM file with the certificate that etcd asks for")
	f.StringVar(&access.Key, "key", "", "PEM file with its key")
	f.StringVar(&access.User, "user", "", "user of etcd")
	f.StringVar(&access.PasswordFile, "password-file", "", "file with the user's password, mode 0600")
	_, _ = cmd.MarkFlagRequired("from"), cmd.MarkFlagRequired("to")
	return cmd
}
