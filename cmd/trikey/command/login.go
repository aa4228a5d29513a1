package command

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/boombuler/barcode/qr"
	"github.com/spf13/cobra"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/internal/secret"
)

// loginFlags are the flags of login.
type loginFlags struct {
	addr, caCert, name  string
	enrol, stepUp, oidc bool
}

func newLogin(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "login", Short: "Log in as a person who manages a service, here or elsewhere",
		Long: `Log in as a person who manages a service: with your name, password, and the code that
your authenticator shows. Commands like trikey key and trikey app then go to that service,
also from another computer: without --config, where TRIKEY_ADDR names it or this computer
has no configuration.

With --enrol you take an invitation up: you type both halves of its code, choose a
password, and add the service to your authenticator. With --step-up you give another
code, for what is sensitive. With --oidc a link is printed, for a browser at this computer:
you log in at the service's OpenID Connect provider, and give a code here when you need one.

Nothing secret is taken as an argument. Where there is no terminal, the lines of standard
input are the answers, in the order of the questions.`,
		Example: "  trikey login --addr https://kms.example:7445 --cacert ca.pem --name alice",
		Args:    cobra.NoArgs,
	}
	var f loginFlags
	cmd.Flags().StringVar(&f.addr, "addr", "", "address of the service's admin listener, https://HOST:PORT (default: TRIKEY_ADDR, or where the configuration says)")
	cmd.Flags().StringVar(&f.caCert, "cacert", "", "PEM file with the authority of its certificate (default: TRIKEY_CACERT, or the configuration's)")
	cmd.Flags().StringVar(&f.name, "name", "", "your name (default: it is asked for)")
	cmd.Flags().BoolVar(&f.enrol, "enrol", false, "take an invitation up")
	cmd.Flags().BoolVar(&f.stepUp, "step-up", false, "give another code in the session that you have")
	cmd.Flags().BoolVar(&f.oidc, "oidc", false, "log in at the OpenID Connect provider of the service")
	cmd.MarkFlagsMutuallyExclusive("enrol", "step-up", "oidc")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ask := newAsker(cmd)
		if f.stepUp {
			return o.stepUp(cmd, ask)
		}
		where, err := o.where(f)
		if err != nil {
			return err
		}
		if f.oidc {
			return o.loginOIDC(cmd, where)
		}
		if f.name == "" {
			if f.name, err = ask.line("Name: "); err != nil {
				return err
			}
		}
		if f.enrol {
			if err := enrol(cmd, ask, where, f.name); err != nil {
				return err
			}
		}
		return o.login(cmd, ask, where, f.name)
	}
	return cmd
}

// where returns the service that a login is for, without a session.
func (o *options) where(f loginFlags) (*saved, error) {
	s := &saved{Addr: f.addr, CACert: f.caCert}
	if s.CACert == "" {
		s.CACert = os.Getenv("TRIKEY_CACERT")
	}
	if s.Addr == "" && o.config == "" {
		s.Addr = os.Getenv("TRIKEY_ADDR")
	}
	if s.Addr == "" {
		cfg, err := o.load(nil)
		switch {
		case err != nil:
			return nil, fault.Wrap(fault.Usage, err, "no service is named (--addr)")
		case cfg.Admin.Listen == "":
			return nil, fault.New(fault.Usage, "this service has no listener for people (admin.listen)")
		}
		s.Addr = "https://" + cfg.Admin.Listen
		if s.CACert == "" {
			s.CACert = cfg.CA
		}
	}
	s.Addr = strings.TrimSuffix(s.Addr, "/")
	if s.CACert != "" {
		var err error
		if s.CACert, err = filepath.Abs(s.CACert); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// call makes a call of the admin API, with the session if there is one.
func (s *saved) call(cmd *cobra.Command, method, path string, in, out any) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	header := http.Header{}
	if s.Token != "" {
		header.Set("Authorization", "Bearer "+s.Token)
	}
	return jsonhttp.Do(cmd.Context(), client, method, s.Addr+"/admin/v1/"+path, header, in, out)
}

func (o *options) login(cmd *cobra.Command, ask *asker, where *saved, name string) error {
	password, err := ask.secret("Password: ")
	if err != nil {
		return err
	}
	defer password.Wipe()
	code, err := ask.line("Code: ")
	if err != nil {
		return err
	}
	var out v1.Session
	err = password.Use(func(p []byte) error {
		return where.call(cmd, http.MethodPost, "login", v1.Login{Name: name, Password: p, Code: code}, &out)
	})
	if err != nil {
		return err
	}
	if err := sessionOfAnswer(where.Addr, where.CACert, out).save(); err != nil {
		return err
	}
	out.Token = ""
	return o.printSession(cmd, where.Addr, out)
}

func (o *options) printSession(cmd *cobra.Command, addr string, s v1.Session) error {
	return o.print(cmd, s, func(w io.Writer) {
		fmt.Fprintf(w, "You are %s, %s, at %s until %s.\n", s.Name, s.Role, addr, date(s.Expires))
	})
}

// enrol takes an invitation up.
func enrol(cmd *cobra.Command, ask *asker, where *saved, name string) error {
	in := v1.Enrol{Name: name}
	for i, prompt := range []string{"One half of the invitation's code: ", "The other half: "} {
		half, err := ask.line(prompt)
		if err != nil {
			return err
		}
		in.Halves[i] = half
	}
	password, err := ask.twice("New password (12 characters or more): ", "New password once more: ")
	if err != nil {
		return err
	}
	defer password.Wipe()
	var out v1.Enrolled
	err = password.Use(func(p []byte) error {
		in.Password = p
		return where.call(cmd, http.MethodPost, "enrol", in, &out)
	})
	if err != nil {
		return err
	}
	w := cmd.ErrOrStderr()
	fmt.Fprintln(w, "Add this to your authenticator now; it is not shown again:")
	if ask.terminal {
		if err := drawQR(w, out.URI); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "  %s\n", out.URI)
	if u, err := url.Parse(out.URI); err == nil {
		fmt.Fprintf(w, "  or by hand, time based, the secret %s\n", u.Query().Get("secret"))
	}
	fmt.Fprintln(w, "Now log in.")
	return nil
}

// drawQR draws a QR code by half blocks, dark on light, with the quiet zone that readers
// need.
func drawQR(w io.Writer, text string) error {
	code, err := qr.Encode(text, qr.M, qr.Auto)
	if err != nil {
		return err
	}
	const quiet = 2
	size := code.Bounds().Dx()
	dark := func(x, y int) bool {
		if x < 0 || y < 0 || x >= size || y >= size {
			return false
		}
		r, _, _, _ := code.At(x, y).RGBA()
		return r == 0
	}
	for y := -quiet; y < size+quiet; y += 2 {
		var line strings.Builder
		for x := -quiet; x < size+quiet; x++ {
			// Terminals are light on dark, mostly: what is light in the code is drawn.
			line.WriteString([]string{"█", "▄", "▀", " "}[2*b2i(dark(x, y+1))+b2i(dark(x, y))])
		}
		fmt.Fprintln(w, line.String())
	}
	return nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (o *options) stepUp(cmd *cobra.Command, ask *asker) error {
	s, err := needLogin()
	if err != nil {
		return err
	}
	code, err := ask.line("Code: ")
	if err != nil {
		return err
	}
	var out v1.Session
	if err := s.call(cmd, http.MethodPost, "session/step-up", v1.StepUp{Code: code}, &out); err != nil {
		return err
	}
	return o.printSession(cmd, s.Addr, out)
}

// needLogin returns the session that is kept.
func needLogin() (*saved, error) {
	s, err := lastLogin()
	if err == nil && s == nil {
		err = fault.New(fault.Unauthorized, "you are not logged in (trikey login)")
	}
	return s, err
}

func newLogout(*options) *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "End your session", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := loginFile()
			if err != nil {
				return err
			}
			s, err := lastLogin()
			if err == nil && s == nil {
				return nil
			}
			if err == nil {
				err = s.call(cmd, http.MethodPost, "session/logout", nil, nil)
			}
			// The file goes in any case. A session that was over already is no failure.
			if removed := os.Remove(path); removed != nil && !errors.Is(removed, os.ErrNotExist) {
				return errors.Join(err, removed)
			}
			if errors.Is(err, fault.Unauthorized) {
				return nil
			}
			return err
		},
	}
}

func newWhoami(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show who you are logged in as, and until when", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := needLogin()
			if err != nil {
				return err
			}
			var out v1.Session
			if err := s.call(cmd, http.MethodGet, "session", nil, &out); err != nil {
				return err
			}
			return o.printSession(cmd, s.Addr, out)
		},
	}
}

func newAdminPassword(*options) *cobra.Command {
	return &cobra.Command{
		Use: "password", Short: "Change your own password; your sessions end", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := needLogin()
			if err != nil {
				return err
			}
			ask := newAsker(cmd)
			old, err := ask.secret("Password: ")
			if err != nil {
				return err
			}
			defer old.Wipe()
			next, err := ask.twice("New password (12 characters or more): ", "New password once more: ")
			if err != nil {
				return err
			}
			defer next.Wipe()
			code, err := ask.line("Code: ")
			if err != nil {
				return err
			}
			err = withBoth(old, next, func(a, b []byte) error {
				return s.call(cmd, http.MethodPost, "session/password", v1.NewPassword{Old: a, New: b, Code: code}, nil)
			})
			if err == nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "Your password is changed. Log in with it.")
			}
			return err
		},
	}
}

func withBoth(a, b *secret.Bytes, f func(a, b []byte) error) error {
	return a.Use(func(x []byte) error { return b.Use(func(y []byte) error { return f(x, y) }) })
}
