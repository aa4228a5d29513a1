package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/api"
	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/envelope"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/sdk"
)

const callerHelp = `
The caller is an app: TRIKEY_APP_KEY and TRIKEY_APP_SECRET_FILE say which; or whoever
the token in the file TRIKEY_TOKEN_FILE was made for. The service
is at TRIKEY_ADDR (https://host:port) with the authorities of TRIKEY_CACERT, or where
the configuration says.`

// client returns the SDK's client for the app that the environment names.
func (o *options) client() (*sdk.Client, error) {
	cfg := sdk.Config{AppKey: os.Getenv("TRIKEY_APP_KEY"), AppSecretFile: os.Getenv("TRIKEY_APP_SECRET_FILE"), CAFile: os.Getenv("TRIKEY_CACERT")}
	if cfg.TokenFile = os.Getenv("TRIKEY_TOKEN_FILE"); cfg.TokenFile != "" {
		cfg.AppKey, cfg.AppSecretFile = "", ""
	} else if cfg.AppKey == "" || cfg.AppSecretFile == "" {
		return nil, fault.New(fault.Unauthorized, "no app is named: set TRIKEY_APP_KEY, and TRIKEY_APP_SECRET_FILE to the file with its AppSecret, or TRIKEY_TOKEN_FILE to one with a token")
	}
	if addr := os.Getenv("TRIKEY_ADDR"); addr != "" && o.config == "" {
		cfg.Addresses = strings.Split(addr, ",")
		return sdk.New(cfg)
	}
	local, err := o.load(nil)
	if err != nil {
		return nil, err
	}
	cfg.Addresses = []string{"https://" + local.API.Listen}
	if cfg.CAFile == "" {
		cfg.CAFile = local.CA
	}
	return sdk.New(cfg)
}

// parseContext reads k=v pairs.
func parseContext(pairs []string) (sdk.Context, error) {
	c := sdk.Context{}
	for _, pair := range pairs {
		k, v, ok := strings.Cut(pair, "=")
		if !ok || k == "" {
			return nil, fault.New(fault.Usage, "context: %q is not of the form name=value", pair)
		}
		if _, twice := c[k]; twice {
			return nil, fault.New(fault.Usage, "context: %q is given twice", k)
		}
		c[k] = v
	}
	return c, nil
}

// readInput reads standard input, as much as one call takes.
func readInput(cmd *cobra.Command, limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), int64(limit)+1))
	if err != nil {
		return nil, fault.Wrap(fault.BadRequest, err, "standard input")
	}
	if len(b) > limit {
		return nil, fault.New(fault.TooLarge, "the input is larger than %d bytes", limit)
	}
	return b, nil
}

// maxPlain is the largest plaintext whose base64 fits a JSON request.
const maxPlain = (v1.MaxBody - 64<<10) / 4 * 3

// readCiphertext reads a ciphertext in its text or binary form.
func readCiphertext(cmd *cobra.Command) (string, error) {
	b, err := readInput(cmd, v1.MaxBody)
	if err != nil {
		return "", err
	}
	if len(b) > 0 && b[0] == envelope.Version {
		return string(envelope.AppendText(nil, b)), nil
	}
	return string(bytes.TrimSpace(b)), nil
}

// dataCmd is a command that reads standard input or --in, calls, and writes standard
// output or --out.
func (o *options) dataCmd(use, short string, run func(ctx context.Context, cmd *cobra.Command, c *sdk.Client, context sdk.Context) ([]byte, error)) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: short + ", from standard input or --in to standard output or --out.\n" + callerHelp, Args: cobra.NoArgs}
	pairs := cmd.Flags().StringArray("context", nil, "name=value that the ciphertext is bound to (repeatable)")
	var f files
	cmd.Flags().StringVar(&f.in, "in", "", "file to read (default: standard input)")
	cmd.Flags().StringVar(&f.out, "out", "", "file to write, which is there only once it is complete (default: standard output)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		context, err := parseContext(*pairs)
		if err != nil {
			return err
		}
		client, err := o.client()
		if err != nil {
			return err
		}
		defer client.Close()
		if err := f.open(cmd); err != nil {
			return err
		}
		defer func() { err = f.close(err) }()
		out, err := run(cmd.Context(), cmd, client, context)
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write(out)
		return err
	}
	return cmd
}

func newEncrypt(o *options) *cobra.Command {
	var key, algorithm string
	var stream bool
	cmd := o.dataCmd("encrypt", "Encrypt with a business key",
		func(ctx context.Context, cmd *cobra.Command, c *sdk.Client, context sdk.Context) ([]byte, error) {
			if stream {
				return nil, copyStream(ctx, cmd, sdk.StreamRequest{Key: sdk.Key(key), Context: context, Algorithm: algorithm}, c.EncryptStream)
			}
			plaintext, err := readInput(cmd, maxPlain)
			if err != nil {
				return nil, err
			}
			sealed, err := c.Encrypt(ctx, sdk.EncryptRequest{Key: sdk.Key(key), Plaintext: plaintext, Context: context, Algorithm: algorithm})
			return []byte(sealed.Ciphertext + "\n"), err
		})
	cmd.Flags().StringVar(&key, "key", "", "key index or name, required")
	cmd.Flags().StringVar(&algorithm, "algorithm", "", "algorithm (default: the key's own)")
	cmd.Flags().BoolVar(&stream, "stream", false, "encrypt as a stream: input of any length, binary output")
	_ = cmd.MarkFlagRequired("key")
	return cmd
}

func newDecrypt(o *options) *cobra.Command {
	var key string
	cmd := o.dataCmd("decrypt", "Decrypt a ciphertext or a stream",
		func(ctx context.Context, cmd *cobra.Command, c *sdk.Client, context sdk.Context) ([]byte, error) {
			if beginsStream(cmd) {
				return nil, copyStream(ctx, cmd, sdk.StreamRequest{Key: sdk.Key(key), Context: context}, c.DecryptStream)
			}
			ciphertext, err := readCiphertext(cmd)
			if err != nil {
				return nil, err
			}
			opened, err := c.Decrypt(ctx, sdk.DecryptRequest{Ciphertext: ciphertext, Context: context, Key: sdk.Key(key)})
			return opened.Plaintext, err
		})
	cmd.Flags().StringVar(&key, "key", "", "refuse a ciphertext of any other key")
	return cmd
}

func newReencrypt(o *options) *cobra.Command {
	var key, algorithm string
	var toContext []string
	cmd := o.dataCmd("reencrypt", "Seal a ciphertext anew, under another key, algorithm or context, without its plaintext leaving the machine",
		func(ctx context.Context, cmd *cobra.Command, c *sdk.Client, context sdk.Context) ([]byte, error) {
			ciphertext, err := readCiphertext(cmd)
			if err != nil {
				return nil, err
			}
			r := sdk.ReEncryptRequest{Ciphertext: ciphertext, Context: context, To: sdk.Target{Key: sdk.Key(key), Algorithm: algorithm}}
			if cmd.Flags().Changed("to-context") {
				target, err := parseContext(toContext)
				if err != nil {
					return nil, err
				}
				r.To.Context = &target
			}
			sealed, err := c.ReEncrypt(ctx, r)
			return []byte(sealed.Ciphertext + "\n"), err
		})
	cmd.Flags().StringVar(&key, "to-key", "", "key index or name (default: the ciphertext's own)")
	cmd.Flags().StringVar(&algorithm, "to-algorithm", "", "algorithm (default: the key's own; under the same key, the ciphertext's)")
	cmd.Flags().StringArrayVar(&toContext, "to-context", nil, "name=value of the new context (repeatable; default: the same context)")
	return cmd
}

func newInspect(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "inspect", Short: "Show the public part of a ciphertext or stream, from standard input; needs no service and no key", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i, err := inspect(cmd)
			if err != nil {
				return err
			}
			return o.print(cmd, i, func(w io.Writer) {
				fmt.Fprintf(w, "format     %d\nalgorithm  %s (suite %d)\nkey        %d version %d\nsalt       %s\nnonce      %s\nplaintext  %d bytes\n",
					i.Format, i.Algorithm, i.Suite, i.Key, i.Version, i.Salt, i.Nonce, i.Plaintext)
				if i.Segments > 0 {
					fmt.Fprintf(w, "segments   %d\n", i.Segments)
				}
			})
		},
	}
}

func inspect(cmd *cobra.Command) (v1.Inspection, error) {
	if !beginsStream(cmd) {
		text, err := readCiphertext(cmd)
		if err != nil {
			return v1.Inspection{}, err
		}
		return api.Inspect(text)
	}
	header := make([]byte, envelope.StreamHeaderSize)
	n, err := io.ReadFull(cmd.InOrStdin(), header)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return v1.Inspection{}, fault.Wrap(fault.BadRequest, err, "the input")
	}
	rest, err := io.Copy(io.Discard, cmd.InOrStdin())
	if err != nil {
		return v1.Inspection{}, fault.Wrap(fault.BadRequest, err, "the input")
	}
	return api.InspectStream(header[:n], int64(n)+rest)
}
