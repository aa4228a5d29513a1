package command

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/oidc"
)

// newOIDC returns the client of the provider of a configuration, nil when it has none.
func newOIDC(c config.OIDC) (*oidc.Client, error) {
	if c.Issuer == "" {
		return nil, nil
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, IdleConnTimeout: time.Minute}
	if c.CA != "" {
		roots, err := poolOf(c.CA)
		if err != nil {
			return nil, fault.Wrap(fault.CodeOf(err), err, "admin.oidc.ca")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12} // providers are others' software
	}
	cfg := oidc.Config{Issuer: c.Issuer, ClientID: c.ClientID, HTTP: &http.Client{Transport: transport, Timeout: 10 * time.Second}, Now: failpoint.Now}
	if c.ClientSecretFile != "" {
		var err error
		if cfg.Secret, err = readSecretFile(c.ClientSecretFile); err != nil {
			return nil, fault.Wrap(fault.CodeOf(err), err, "admin.oidc.client_secret_file")
		}
	}
	return oidc.New(cfg), nil
}

// oidcWait is how long a person has for logging in at the provider.
const oidcWait = 10 * time.Minute

// loginOIDC logs in at the service's provider: this program only carries the code from the
// browser to the service (RFC 8252, section 7.3).
func (o *options) loginOIDC(cmd *cobra.Command, where *saved) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	var begun v1.BegunOIDC
	in := v1.BeginOIDC{RedirectURI: "http://" + l.Addr().String() + oidc.Callback}
	if err := where.call(cmd, http.MethodPost, "login/oidc/begin", in, &begun); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Open this in a browser at this computer, and log in there:\n  %s\n", begun.URL)
	ctx, cancel := context.WithTimeout(cmd.Context(), oidcWait)
	defer cancel()
	code, err := awaitCode(ctx, l, begun.State)
	if err != nil {
		return err
	}
	var out v1.Session
	if err := where.call(cmd, http.MethodPost, "login/oidc/finish", v1.FinishOIDC{State: begun.State, Code: code}, &out); err != nil {
		return err
	}
	if err := sessionOfAnswer(where.Addr, where.CACert, out).save(); err != nil {
		return err
	}
	out.Token = ""
	return o.printSession(cmd, where.Addr, out)
}

// awaitCode waits for the browser to bring the code of a state. What has another state is
// not of this login, and changes nothing.
func awaitCode(ctx context.Context, l net.Listener, state string) (string, error) {
	got := make(chan url.Values, 1)
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.Method != http.MethodGet || r.URL.Path != oidc.Callback || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1 {
			http.Error(w, "This is not the login that is waited for.", http.StatusBadRequest)
			return
		}
		select {
		case got <- q:
		default:
		}
		_, _ = io.WriteString(w, "Go back to the terminal; this page can be closed.\n")
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	var q url.Values
	select {
	case q = <-got:
	case <-ctx.Done():
	}
	// The page is still being written: the browser gets a moment.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if server.Shutdown(ending) != nil {
		_ = server.Close()
	}
	served := <-done
	switch {
	case q == nil && !errors.Is(served, http.ErrServerClosed):
		return "", served
	case q == nil:
		return "", fault.New(fault.Unauthorized, "nobody logged in at the provider; begin again (trikey login --oidc)")
	case q.Get("code") == "":
		return "", fault.New(fault.Unauthorized, "the provider let nobody in (%.40q); begin again (trikey login --oidc)", q.Get("error"))
	}
	return q.Get("code"), nil
}

func newAdminBind(o *options) *cobra.Command {
	var in v1.BindOIDC
	cmd := &cobra.Command{
		Use: "bind-oidc NAME --subject SUB", Short: "Let a person log in as a subject of the OpenID Connect provider", Args: cobra.ExactArgs(1),
		Long: `Let a person log in as a subject of the OpenID Connect provider (admin.oidc). SUB is what
the provider gives as "sub" in ID tokens, and '' unbinds. The person's sessions end.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var out v1.Person
			if err := o.admin(cmd.Context(), http.MethodPost, "people/"+url.PathEscape(args[0])+"/bind-oidc", in, &out); err != nil {
				return err
			}
			return o.print(cmd, out, func(w io.Writer) { fmt.Fprintf(w, "%s, %s, is bound to %q\n", out.Name, out.Role, out.Subject) })
		},
	}
	cmd.Flags().StringVar(&in.Subject, "subject", "", "the person's subject at the provider, required")
	_ = cmd.MarkFlagRequired("subject")
	return cmd
}
