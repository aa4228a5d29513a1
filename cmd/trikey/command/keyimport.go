package command

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/hsm/keyimport"
	"github.com/trikey/trikey/internal/fault"
)

func newKeyImport(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "import", Short: "Take in a business key that was made elsewhere, wrapped: begin, finish",
		Long: fmt.Sprintf(`Take in a business key of 32 bytes that was made elsewhere. It never is in the clear
on the way.

  trikey key import begin -o json            a public key, valid for one import and %s
  trikey key import finish --id ID --in BLOB --index 9 --name partner

The blob is what PKCS#11's CKM_RSA_AES_KEY_WRAP makes (SHA-256, AES-256): RSA-OAEP of
an AES key to the public key, then AES-KWP of the 32 bytes under it. docs/operations.md
shows how to make one with OpenSSL.`, keyimport.Life),
	}
	cmd.AddCommand(newImportBegin(o), newImportFinish(o))
	return cmd
}

func newImportBegin(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "begin", Short: "Have the machine make a one-time key to wrap the business key with", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out v1.ImportKey
			if err := o.admin(cmd.Context(), http.MethodPost, "imports", nil, &out); err != nil {
				return err
			}
			return o.print(cmd, out, func(w io.Writer) {
				fmt.Fprintf(w, "import %s, until %s\nSHA-256 of the public key %s\n%s", out.ID, date(out.Expires.Round(time.Second)), out.Fingerprint, out.PublicKey)
			})
		},
	}
}

func newImportFinish(o *options) *cobra.Command {
	var in v1.FinishImport
	var id, file string
	cmd := &cobra.Command{
		Use: "finish", Short: "Give the machine the wrapped business key, as a new key", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			blob, err := readBlob(cmd, file)
			if err != nil {
				return err
			}
			in.Blob = blob
			var out v1.AdminKey
			if err := o.admin(cmd.Context(), http.MethodPost, "imports/"+url.PathEscape(id), in, &out); err != nil {
				return err
			}
			return o.printKey(cmd, out)
		},
	}
	cmd.Flags().StringVar(&id, "id", "", "the import's id, as begin told it, required")
	cmd.Flags().StringVar(&file, "in", "-", "file with the blob; - is standard input")
	cmd.Flags().Uint32Var(&in.Version, "version", 0, "number of its first version (default 1): what was sealed elsewhere opens under the index and version that it names")
	newKeyFlags(cmd, &in.NewKey)
	_ = cmd.MarkFlagRequired("id")
	return cmd
}

// readBlob reads a file of no more than a blob's size: one byte over shows that it is none.
func readBlob(cmd *cobra.Command, file string) ([]byte, error) {
	r := cmd.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fault.Wrap(fault.Usage, err, "--in")
		}
		defer func() { _ = f.Close() }()
		r = f
	}
	return io.ReadAll(io.LimitReader(r, keyimport.BlobSize+1))
}
