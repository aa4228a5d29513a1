package command

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/hsm/keyexport"
	"github.com/trikey/trikey/internal/fault"
)

func newKeyExport(o *options) *cobra.Command {
	var in v1.ExportKey
	var to, out string
	cmd := &cobra.Command{
		Use: "export KEY", Short: "Have the machine wrap an exportable business key for somebody else's public key", Args: cobra.ExactArgs(1),
		Long: fmt.Sprintf(`Have the machine wrap one version of a business key for an RSA public key of %d bits or
more: for another Trikey (trikey key import begin there), or an HSM that has PKCS#11's
CKM_RSA_AES_KEY_WRAP (SHA-256, AES-256). Only keys that were made with --exportable go out,
and never in the clear.

Another person approves it and gets the wrapped key (trikey approve grant ID --out FILE).
Where nobody else is enrolled, or admin.approval is off, --yes-export says that it is meant.`, keyexport.MinBits),
		Example: "  trikey key export 7 --to-key import.pem --out chat-1.blob --yes-export cmac-aes:763cbc",
		RunE: func(cmd *cobra.Command, args []string) error {
			pem, err := os.ReadFile(to)
			if err != nil {
				return fault.Wrap(fault.Usage, err, "--to-key")
			}
			in.ToKey = string(pem)
			if err := vacant(out); err != nil {
				return err
			}
			var made v1.ExportedKey
			if err := o.admin(cmd.Context(), http.MethodPost, "keys/"+url.PathEscape(args[0])+"/export", in, &made); err != nil {
				return err
			}
			if err := saveExport(out, made); err != nil {
				return err
			}
			return o.print(cmd, made, func(w io.Writer) {
				fmt.Fprintf(w, "key %d version %d, %s, %s, %s\nwrapped for %s in %s\n", made.Index, made.Version, made.Purpose, made.Algorithm, made.KCV, made.Receiver, out)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&to, "to-key", "", "file with the receiver's public key, PEM; required")
	f.StringVar(&out, "out", "", "file for the wrapped key, which must not exist; required")
	f.Uint32Var(&in.Version, "version", 0, "version of the key (default: the newest)")
	f.StringVar(&in.Confirm, "yes-export", "", "key check value of the version, where nobody else approves")
	_ = cmd.MarkFlagRequired("to-key")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

// vacant refuses a file that is there: an export is recorded, and one is not to be lost by
// another in its place.
func vacant(file string) error {
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Usage, "--out: %s is there already, or cannot be looked at; name another file", file)
	}
	return nil
}

func saveExport(file string, made v1.ExportedKey) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		_, err = f.Write(made.Exported)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fault.Wrap(fault.Usage, err, "the key was exported, and cannot be written; export it once more")
	}
	return nil
}

// saveGranted writes what the export of a key has made that was approved.
func saveGranted(file string, a v1.Approval) error {
	result, err := json.Marshal(a.Result)
	var made v1.ExportedKey
	if err == nil {
		err = json.Unmarshal(result, &made)
	}
	if err != nil || len(made.Exported) == 0 {
		return fault.New(fault.Usage, "it is done, and made nothing for --out: that was no export of a key (trikey approve show %s)", a.ID)
	}
	return saveExport(file, made)
}
