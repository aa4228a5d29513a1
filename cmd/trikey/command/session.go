package command

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
)

// saved is a session as it is kept in the user's configuration directory, mode 0600.
type saved struct {
	Addr    string    `json:"addr"` // https://host:port
	CACert  string    `json:"cacert,omitempty"`
	Token   string    `json:"token"`
	Name    string    `json:"name"`
	Role    string    `json:"role"`
	Expires time.Time `json:"expires"`
}

// loginFile is the file of the user's session: one at a time, so that nobody changes one
// service and means another.
func loginFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fault.Wrap(fault.BadConfig, err, "the directory of the user's configuration (XDG_CONFIG_HOME)")
	}
	return filepath.Join(dir, "trikey", "login.json"), nil
}

func (s *saved) save() error {
	path, err := loginFile()
	if err != nil {
		return err
	}
	raw, err := json.Marshal(s, jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fault.Wrap(fault.BadConfig, err, "the session cannot be kept")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(fault.BadConfig, err, "the session of before cannot be removed")
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fault.Wrap(fault.BadConfig, err, "the session cannot be kept")
	}
	_, err = f.Write(raw)
	return errors.Join(err, f.Close())
}

// lastLogin returns the session that is kept, nil when there is none.
func lastLogin() (*saved, error) {
	path, err := loginFile()
	if err != nil {
		return nil, nil // without a home there is no session
	}
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.BadConfig, err, "the session")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.FileMode, "%s can be read by others than its owner (mode %04o): trikey logout, then log in anew", path, info.Mode().Perm())
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.BadConfig, err, "the session")
	}
	s := &saved{}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fault.New(fault.BadConfig, "%s is not a session; remove it and log in anew (trikey login)", path)
	}
	return s, nil
}

// remoteLogin returns the session by which a command goes to a service elsewhere, nil when
// it goes to the one on this host: with --config always that; with TRIKEY_ADDR the session
// there; else that of a configuration, if there is one, and the session otherwise.
func (o *options) remoteLogin() (*saved, error) {
	if o.config != "" {
		return nil, nil
	}
	s, err := lastLogin()
	if err != nil {
		return nil, err
	}
	addr := strings.TrimSuffix(os.Getenv("TRIKEY_ADDR"), "/")
	if addr != "" && s != nil && s.Addr == addr {
		return s, nil
	}
	_, noConfig := o.load(nil)
	switch {
	case noConfig == nil:
		return nil, nil
	case addr != "":
		return nil, fault.New(fault.Unauthorized, "you are not logged in at %s (trikey login)", addr)
	}
	return s, nil // where that is nil, the missing configuration is told
}

// client returns an HTTP client that trusts the session's authority.
func (s *saved) client() (*http.Client, error) {
	u, err := url.Parse(s.Addr)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" {
		return nil, fault.New(fault.Usage, "address: %q is not of the form https://HOST:PORT", s.Addr)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CACert != "" {
		if config.RootCAs, err = poolOf(s.CACert); err != nil {
			return nil, err
		}
	}
	return &http.Client{
		Transport:     &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       2 * time.Minute,
	}, nil
}

func sessionOfAnswer(addr, ca string, a v1.Session) *saved {
	return &saved{Addr: addr, CACert: ca, Token: a.Token, Name: a.Name, Role: a.Role, Expires: a.Expires}
}
