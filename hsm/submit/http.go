package submit

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
)

const (
	path = "/v1/submission"

	// maxBody has room for the largest envelope in base64, and little more.
	maxBody = 2 * hsm.MaxEnvelope
)

// Handler returns the handler of the listener for custodians who are elsewhere.
func Handler(s hsm.Submissions) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+path, jsonhttp.Handle(maxBody, func(r *http.Request, _ jsonhttp.None) (hsm.Window, error) {
		return s.Window(r.Context())
	}))
	mux.HandleFunc("POST "+path, jsonhttp.Handle(maxBody, func(r *http.Request, in hsm.Submission) (hsm.Receipt, error) {
		// A machine must not be left half open because the caller went away.
		receipt, err := s.Submit(context.WithoutCancel(r.Context()), in)
		if err != nil && !errors.Is(err, fault.NoWindow) { // which anybody can ask for, at any rate
			slog.WarnContext(r.Context(), "a share from elsewhere was refused", "code", string(fault.CodeOf(err)), "address", r.RemoteAddr)
		}
		return receipt, err
	}))
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		jsonhttp.Error(w, r, fault.New(fault.MethodNotAllowed, "%s does not take %s", path, r.Method))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		jsonhttp.Error(w, r, fault.New(fault.NotFound, "there is nothing here but %s", path))
	})
	return mux
}

// Client is the custodian's end of the listener.
type Client struct {
	http *http.Client
	url  string
}

var _ hsm.Submissions = (*Client)(nil)

// callTimeout bounds a call: the last card has the machine load its keys.
const callTimeout = 2 * time.Minute

// Dial returns the listener at an address, https://HOST:PORT. Nothing is sent before
// the first call.
func Dial(to string, c *tls.Config) (*Client, error) {
	if !strings.Contains(to, "://") {
		to = "https://" + to
	}
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return nil, fault.New(fault.Usage, "%q is no address of a machine; write https://HOST:PORT", to)
	}
	return &Client{url: "https://" + u.Host + path, http: &http.Client{
		Timeout:   callTimeout,
		Transport: &http.Transport{TLSClientConfig: c, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true},
		// A machine does not send custodians elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Window is hsm.Submissions.Window.
func (c *Client) Window(ctx context.Context) (w hsm.Window, err error) {
	err = jsonhttp.Do(ctx, c.http, http.MethodGet, c.url, nil, nil, &w)
	return w, err
}

// Submit is hsm.Submissions.Submit.
func (c *Client) Submit(ctx context.Context, in hsm.Submission) (r hsm.Receipt, err error) {
	err = jsonhttp.Do(ctx, c.http, http.MethodPost, c.url, nil, in, &r)
	return r, err
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }
