package main_test

import (
	"bufio"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/trikey/trikey/cmd/trikey/config"
)

// startProvider runs a provider that we did not write, and returns its issuer.
func startProvider(t *testing.T) string {
	t.Helper()
	dir := filepath.Join("testdata", "node")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "oidc-provider")); err != nil {
		t.Fatal("the OpenID Connect provider is not installed: make test-deps")
	}
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join(dir, "provider.mjs"))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if issuer, ok := strings.CutPrefix(lines.Text(), "issuer "); ok {
			return issuer
		}
	}
	t.Fatal("the provider did not start")
	return ""
}

var formAction = regexp.MustCompile(`<form[^>]* action="([^"]+)"`)

// browse logs in at the provider by its forms, as a browser would, and returns where it
// sends the browser in the end.
func browse(t *testing.T, start, subject string) *url.URL {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar, Timeout: 30 * time.Second, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if r.URL.Path == "/callback" {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	defer browser.CloseIdleConnections()
	res, err := browser.Get(start)
	for range 4 {
		if err != nil {
			t.Fatal(err)
		}
		page, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if to, err := res.Location(); err == nil {
			return to
		}
		form := formAction.FindSubmatch(page)
		if form == nil {
			t.Fatalf("no form: %d %s", res.StatusCode, page)
		}
		at, err := res.Request.URL.Parse(string(form[1]))
		if err != nil {
			t.Fatal(err)
		}
		fields := url.Values{"prompt": {"consent"}}
		if strings.Contains(string(page), `name="login"`) {
			fields = url.Values{"prompt": {"login"}, "login": {subject}, "password": {"any"}}
		}
		res, err = browser.PostForm(at.String(), fields)
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the provider asks on and on")
	return nil
}

const loopback = "http://127.0.0.1:9/callback"

func (o *office) beginOIDC() (where, state string) {
	o.t.Helper()
	a := o.admin("", "POST", "/admin/v1/login/oidc/begin", object{"redirect_uri": loopback})
	if a.status != 200 {
		o.t.Fatalf("begin: %d %s", a.status, a.raw)
	}
	return a.text("url"), a.text("state")
}

func (o *office) finishOIDC(state, code string) answer {
	o.t.Helper()
	return o.admin("", "POST", "/admin/v1/login/oidc/finish", object{"state": state, "code": code})
}

// loginAt runs a whole login, by the API.
func (o *office) loginAt(subject string) answer {
	o.t.Helper()
	where, state := o.beginOIDC()
	return o.finishOIDC(state, browse(o.t, where, subject).Query().Get("code"))
}

// newProviderOffice returns an office whose people may log in at a provider.
func newProviderOffice(t *testing.T) (o *office, issuer string) {
	t.Helper()
	issuer = startProvider(t)
	return newOffice(t, func(c *config.Config) { c.Admin.OIDC = config.OIDC{Issuer: issuer, ClientID: "trikey"} }), issuer
}

// TestOIDC: a person logs in by trikey login --oidc at a provider, as what their record says.
func TestOIDC(t *testing.T) {
	t.Parallel()
	o, issuer := newProviderOffice(t)
	ann := o.first("ann", "admin")
	o.ok("admin", "bind-oidc", "ann", "--subject", "ann-at-work")
	if r := ann.do("", "whoami"); r.code != 4 {
		t.Errorf("a session of before the binding: %+v", r)
	}
	cmd := exec.CommandContext(t.Context(), trikey, "login", "--oidc")
	cmd.Env = append(os.Environ(), ann.env()...)
	shown, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(shown)
	for lines.Scan() {
		if at := strings.TrimSpace(lines.Text()); strings.HasPrefix(at, issuer) {
			back := browse(t, at, "ann-at-work")
			forged := *back
			forged.RawQuery = "state=another&code=x"
			for _, u := range []string{forged.String(), back.String()} {
				res, err := http.Get(u)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
				if want := u == back.String(); (res.StatusCode == 200) != want {
					t.Errorf("%s: %d", u, res.StatusCode)
				}
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if r := ann.must("", "whoami", "-o", "json"); !strings.Contains(r.out, `"role": "admin"`) || !strings.Contains(r.out, `"ann"`) {
		t.Errorf("whoami: %s", r.out)
	}
	ann.must("", "key", "create", "--index", "7", "--name", "chat")
	if r := ann.do("", "app", "create", "--name", "im"); r.code != 4 || !strings.Contains(r.err, "step-up") {
		t.Errorf("what is sensitive, without a code: %+v", r)
	}
	ann.must(ann.code()+"\n", "login", "--step-up")
	ann.must("", "app", "create", "--name", "im")
	if r := o.ok("audit", "tail", "-n", "50", "-o", "json"); !strings.Contains(r.out, "login-oidc") {
		t.Errorf("the audit log does not have the login: %s", r.out)
	}
}

// TestOIDCRefused: what is not a bound, active person's own login, once, is refused.
func TestOIDCRefused(t *testing.T) {
	t.Parallel()
	o, issuer := newProviderOffice(t)
	o.first("ann", "admin")
	o.first("aud", "auditor")
	o.ok("admin", "bind-oidc", "ann", "--subject", "sub-ann")
	o.ok("admin", "bind-oidc", "aud", "--subject", "sub-aud")
	if r := o.run("admin", "bind-oidc", "aud", "--subject", "sub-ann"); r.code == 0 {
		t.Error("two people are one subject")
	}
	refused := func(what string, a answer) {
		t.Helper()
		if a.status != 401 || a.code() != "unauthorized" {
			t.Errorf("%s: %d %s", what, a.status, a.raw)
		}
	}
	good := func() {
		t.Helper()
		if a := o.loginAt("sub-ann"); a.status != 200 || a.text("role") != "admin" {
			t.Fatalf("ann: %d %s", a.status, a.raw)
		}
	}
	for _, uri := range []string{"https://127.0.0.1:9/callback", "http://192.0.2.1:9/callback", "http://localhost:9/callback", "http://127.0.0.1:9/callback?x", "http://127.0.0.1@192.0.2.1:9/callback", ""} {
		if a := o.admin("", "POST", "/admin/v1/login/oidc/begin", object{"redirect_uri": uri}); a.status != 400 {
			t.Errorf("redirect to %q: %d", uri, a.status)
		}
	}
	good()
	refused("a subject nobody is bound to", o.loginAt("ann")) // the name is no binding
	if a := o.loginAt("sub-aud"); a.status != 200 {
		t.Fatalf("aud: %d %s", a.status, a.raw)
	}
	o.ok("admin", "disable", "aud")
	refused("a disabled person", o.loginAt("sub-aud"))

	where, _ := o.beginOIDC()
	code := browse(t, where, "sub-ann").Query().Get("code")
	refused("another state", o.finishOIDC("another", code))
	_, second := o.beginOIDC()
	refused("a code of another flow", o.finishOIDC(second, code)) // its verifier is another
	good()
	where, state := o.beginOIDC()
	code = browse(t, where, "sub-ann").Query().Get("code")
	if a := o.finishOIDC(state, code); a.status != 200 {
		t.Fatalf("ann: %d %s", a.status, a.raw)
	}
	refused("a state and code used twice", o.finishOIDC(state, code))
	_, state = o.beginOIDC()
	refused("a code used twice", o.finishOIDC(state, code))

	o.foreignToken(issuer, refused)
	for range 2 {
		refused("another state", o.finishOIDC("another", "x"))
	}
	if a := o.finishOIDC("another", "x"); a.code() != "locked_out" {
		t.Errorf("after five failures: %d %s", a.status, a.raw)
	}
}

// foreignToken has the provider give the ID token of another client, with the nonce, the
// subject and the signature that are right.
func (o *office) foreignToken(issuer string, refused func(string, answer)) {
	o.t.Helper()
	where, state := o.beginOIDC()
	u, err := url.Parse(where)
	if err != nil {
		o.t.Fatal(err)
	}
	other := oauth2.Config{ClientID: "other", RedirectURL: loopback, Scopes: []string{"openid"}, Endpoint: oauth2.Endpoint{AuthURL: issuer + "/auth", TokenURL: issuer + "/token", AuthStyle: oauth2.AuthStyleInParams}}
	verifier := oauth2.GenerateVerifier()
	start := other.AuthCodeURL("x", oauth2.S256ChallengeOption(verifier), oauth2.SetAuthURLParam("nonce", u.Query().Get("nonce")))
	if _, err := other.Exchange(o.t.Context(), browse(o.t, start, "sub-ann").Query().Get("code"), oauth2.VerifierOption(verifier)); err != nil {
		o.t.Fatal(err)
	}
	res, err := http.Get(issuer + "/swap")
	if err != nil {
		o.t.Fatal(err)
	}
	_ = res.Body.Close()
	refused("an ID token of another client", o.finishOIDC(state, browse(o.t, where, "sub-ann").Query().Get("code")))
}
