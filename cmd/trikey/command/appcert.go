package command

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"net/http"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
)

func newAppAddCert(o *options) *cobra.Command {
	return o.appCert("add-cert", "Let an app's clients call with a TLS client certificate",
		`Let an app's clients call with a TLS client certificate.

The app is known by the certificate's public key (the SHA-256 of its
SubjectPublicKeyInfo): a certificate that is renewed for the same key needs no change
here. FILE is the certificate, or a public key, in PEM.`,
		func(cmd *cobra.Command, app, spki string, out *v1.AdminApp) error {
			return o.admin(cmd.Context(), http.MethodPost, app+"/certificates", v1.Certificate{SPKI: spki}, out)
		})
}

func newAppRemoveCert(o *options) *cobra.Command {
	return o.appCert("remove-cert", "Refuse a TLS client certificate of an app from now on", "",
		func(cmd *cobra.Command, app, spki string, out *v1.AdminApp) error {
			return o.admin(cmd.Context(), http.MethodDelete, app+"/certificates/"+url.PathEscape(spki), nil, out)
		})
}

// appCert is a command about a certificate of an app.
func (o *options) appCert(verb, short, long string, f func(cmd *cobra.Command, app, spki string, out *v1.AdminApp) error) *cobra.Command {
	var spki string
	cmd := &cobra.Command{
		Use: verb + " NAME [FILE]", Short: short, Long: long, Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if (spki == "") == (len(args) == 1) {
				return fault.New(fault.Usage, "name the certificate's FILE, or give --spki")
			}
			if spki == "" {
				if spki, err = spkiOfFile(args[1]); err != nil {
					return err
				}
			}
			var out v1.AdminApp
			if err := f(cmd, "apps/"+url.PathEscape(args[0]), spki, &out); err != nil {
				return err
			}
			return o.printApp(cmd, out)
		},
	}
	cmd.Flags().StringVar(&spki, "spki", "", "SHA-256 of the public key (SubjectPublicKeyInfo), in hexadecimal, in place of FILE")
	return cmd
}

// spkiOfFile returns the SHA-256 of the public key in a PEM file.
func spkiOfFile(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fault.Wrap(fault.NotFound, err, "the certificate")
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return "", fault.New(fault.BadRequest, "%s is not PEM; give the certificate, not its private key", path)
	}
	var key []byte
	switch block.Type {
	case "CERTIFICATE":
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", fault.Wrap(fault.BadRequest, err, "%s", path)
		}
		key = c.RawSubjectPublicKeyInfo
	case "PUBLIC KEY":
		if _, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			return "", fault.Wrap(fault.BadRequest, err, "%s", path)
		}
		key = block.Bytes
	default:
		return "", fault.New(fault.BadRequest, "%s begins with %q; give the certificate, or its public key", path, block.Type)
	}
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:]), nil
}
