package sdk

import (
	"context"
	"encoding/base64"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
)

// UserTokenRequest says what a user's token shall be good for.
type UserTokenRequest = v1.UserTokenRequest

// UserToken is a capability for one of the app's users. Whoever has it can use it.
type UserToken = v1.UserToken

// UserToken makes a capability for one of the app's users: for some conversations and
// operations, for at most 24 hours.
func (c *Client) UserToken(ctx context.Context, r UserTokenRequest) (UserToken, error) {
	var out UserToken
	err := c.call(ctx, http.MethodPost, "/v1/tokens/user", r, &out)
	return out, err
}

// RevokeToken revokes a token that was issued to the app, or that it made for a user.
func (c *Client) RevokeToken(ctx context.Context, token string) error {
	return c.call(ctx, http.MethodPost, "/oauth2/revoke", url.Values{"token": {token}}, nil)
}

// credentials are what a call shows the service.
type credentials interface {
	// authorization returns the value of the header.
	authorization(ctx context.Context) (string, error)
	// refused is told of a value that the service did not take, and reports whether
	// there may be another.
	refused(value string) bool
	close()
}

func (c Config) credentials(secret string, client *Client) credentials {
	basic := basicAuth("")
	if !c.Sign && (c.AppKey != "" || c.CertFile == "") {
		basic = basicAuth("Basic " + base64.StdEncoding.EncodeToString([]byte(c.AppKey+":"+secret)))
	}
	switch {
	case c.TokenFile != "":
		return &tokenFile{path: c.TokenFile}
	case c.Tokens:
		s := &tokenSource{now: time.Now, fetch: func(ctx context.Context) (out v1.TokenResponse, err error) {
			form := url.Values{"grant_type": {"client_credentials"}}
			err = client.each(ctx, func(ctx context.Context, address string) error {
				header := http.Header{}
				if basic != "" {
					header.Set("Authorization", string(basic))
				}
				return jsonhttp.Do(ctx, client.http, http.MethodPost, address+"/oauth2/token", header, form, &out)
			})
			return out, err
		}}
		s.ctx, s.stop = context.WithCancel(context.Background())
		return s
	}
	return basic
}

// basicAuth is the AppKey and AppSecret themselves; "" where requests are signed, or the
// connection has a certificate.
type basicAuth string

func (b basicAuth) authorization(context.Context) (string, error) { return string(b), nil }
func (b basicAuth) refused(string) bool                           { return false }
func (b basicAuth) close()                                        {}

// tokenFile is a token that somebody else keeps fresh in a file.
type tokenFile struct {
	path string

	mu    sync.Mutex // guards all below
	value string
	read  time.Time // the file's time of change when it was read
}

func (f *tokenFile) authorization(context.Context) (string, error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return "", fault.Wrap(fault.BadConfig, err, "sdk: read the token")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.value == "" || !info.ModTime().Equal(f.read) {
		raw, err := os.ReadFile(f.path)
		if err != nil {
			return "", fault.Wrap(fault.BadConfig, err, "sdk: read the token")
		}
		f.value, f.read = "Bearer "+strings.TrimSpace(string(raw)), info.ModTime()
	}
	return f.value, nil
}

// refused has the file read again: it may have been written within one tick of its clock.
func (f *tokenFile) refused(value string) bool {
	f.mu.Lock()
	f.value = ""
	f.mu.Unlock()
	now, err := f.authorization(context.Background())
	return err == nil && now != value
}

func (f *tokenFile) close() {}

// tokenSource gets tokens with the app's credentials. However many calls there are, one
// request for a token is under way at a time; and it is made before the token that there
// is expires, so that no call waits for it.
type tokenSource struct {
	fetch func(context.Context) (v1.TokenResponse, error)
	now   func() time.Time
	ctx   context.Context // ends with the client
	stop  context.CancelFunc
	work  sync.WaitGroup // the request under way

	mu      sync.Mutex // guards all below
	value   string     // "": there is none
	expires time.Time
	refresh time.Time // when the next one is asked for
	flight  *flight   // nil while none is asked for
}

// flight is one request for a token.
type flight struct {
	done chan struct{}
	err  error
}

func (s *tokenSource) authorization(ctx context.Context) (string, error) {
	for {
		s.mu.Lock()
		now := s.now()
		good := s.value != "" && now.Before(s.expires)
		if (!good || !now.Before(s.refresh)) && s.flight == nil {
			if err := s.ctx.Err(); err != nil {
				s.mu.Unlock()
				return "", fault.New(fault.BadRequest, "sdk: the client is closed")
			}
			f := &flight{done: make(chan struct{})}
			s.flight = f
			s.work.Go(func() { s.get(f) })
		}
		value, f := s.value, s.flight
		s.mu.Unlock()
		if good {
			return value, nil
		}
		select {
		case <-f.done:
			if f.err != nil {
				return "", f.err
			}
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// get asks for a token. Where that fails the one that there is serves until it expires,
// and the next try is made before.
func (s *tokenSource) get(f *flight) {
	begun := s.now()
	t, err := s.fetch(s.ctx)
	if err == nil && (t.AccessToken == "" || t.ExpiresIn <= 0) {
		err = fault.New(fault.Unavailable, "sdk: the service's answer has no token")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(f.done)
	s.flight = nil
	if err == nil {
		lasts := time.Duration(t.ExpiresIn) * time.Second
		s.value, s.expires = "Bearer "+t.AccessToken, begun.Add(lasts)
		// Not every client at the same moment: after 75 to 85 % of its time.
		s.refresh = begun.Add(lasts*3/4 + rand.N(lasts/10+1))
		return
	}
	f.err = fault.Wrap(fault.CodeOf(err), err, "sdk: there is no token to call with")
	now := s.now()
	if left := s.expires.Sub(now); s.value != "" && left > 0 {
		s.refresh = now.Add(left / 5)
		slog.Warn("trikey: the token could not be refreshed; the one there is serves on", "until", s.expires, "error", err)
	}
}

// refused drops a token that was revoked, or whose key was, so that another is got. A
// newer one than was refused stays.
func (s *tokenSource) refused(value string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.value == value {
		s.value = ""
	}
	return true
}

func (s *tokenSource) close() {
	s.stop()
	s.work.Wait()
}
