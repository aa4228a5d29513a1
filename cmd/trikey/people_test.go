package main_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/trikey/trikey/cmd/trikey/config"
)

// office is a site whose admin listener is on another address of the host, with a
// certificate of its own: what people reach from elsewhere.
type office struct {
	*site
	addr string // https://host:port
	ca   string
	http *http.Client
}

// newOffice returns an office; more changes its configuration.
func newOffice(t *testing.T, more func(*config.Config)) *office {
	t.Helper()
	s := newSite(t)
	ip := net.IPv4(127, 0, 0, 2)
	ca, cert, key := newCertificate(t, s.path("office"), ip)
	cfg, err := config.Load(s.path("trikey.yaml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(cfg.Admin.Listen)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Admin.Listen, cfg.Admin.Cert, cfg.Admin.Key = net.JoinHostPort(ip.String(), port), cert, key
	if more != nil {
		more(cfg)
	}
	if err := cfg.Save(s.path("trikey.yaml")); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(raw)
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}}
	t.Cleanup(client.CloseIdleConnections)
	s.open()
	return &office{site: s, addr: "https://" + cfg.Admin.Listen, ca: ca, http: client}
}

// newCertificate makes an authority and a certificate for an address.
func newCertificate(t *testing.T, dir string, ip net.IP) (ca, cert, key string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := func(n int64) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: "office"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	}
	top, leaf := template(1), template(2)
	top.IsCA, top.BasicConstraintsValid, top.KeyUsage = true, true, x509.KeyUsageCertSign
	leaf.IPAddresses, leaf.ExtKeyUsage = []net.IP{ip}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	write := func(name, kind string, der []byte, err error) string {
		path := filepath.Join(dir, name)
		if err == nil {
			err = os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	topKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	leafKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	topDER, err := x509.CreateCertificate(rand.Reader, top, top, topKey.Public(), topKey)
	ca = write("ca.pem", "CERTIFICATE", topDER, err)
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, top, leafKey.Public(), topKey)
	cert = write("cert.pem", "CERTIFICATE", leafDER, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	return ca, cert, write("key.pem", "PRIVATE KEY", keyDER, err)
}

// person is somebody at a computer of their own: no configuration, a home, an
// authenticator.
type person struct {
	*office
	name, role, password string
	home                 string
	totp                 []byte
	last                 uint64 // step of the newest code
}

// code returns the next code of the person's authenticator, by RFC 6238 as it is written
// there: each step's once, and no step that the service does not take yet.
func (p *person) code() string {
	p.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		at := uint64(time.Now().Unix())
		now := at / 30
		next := max(p.last+1, now)
		if at%30 < 15 { // enough time before the step of before is no longer taken
			next = max(p.last+1, now-1)
		}
		if next <= now+1 {
			p.last = next
			return totp(p.totp, next)
		}
		if time.Now().After(deadline) {
			p.t.Fatal("no further code")
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func totp(key []byte, step uint64) string {
	mac := hmac.New(sha1.New, key)
	mac.Write(binary.BigEndian.AppendUint64(nil, step))
	sum := mac.Sum(nil)
	at := sum[len(sum)-1] & 15
	return fmt.Sprintf("%06d", binary.BigEndian.Uint32(sum[at:])&0x7fffffff%1000000)
}

// The codes of these tests are those of RFC 6238, appendix B.
func TestTOTPGenerator(t *testing.T) {
	for at, want := range map[uint64]string{59: "287082", 1111111109: "081804", 20000000000: "353130"} {
		if got := totp([]byte("12345678901234567890"), at/30); got != want {
			t.Errorf("at %d: %s, want %s", at, got, want)
		}
	}
}

func (p *person) env() []string {
	return []string{"XDG_CONFIG_HOME=" + p.home, "TRIKEY_ADDR=" + p.addr, "TRIKEY_CACERT=" + p.ca, "TRIKEY_CONFIG="}
}

// do runs a command at the person's computer; answers are what it asks for.
func (p *person) do(answers string, args ...string) result {
	p.t.Helper()
	return run(p.t, strings.NewReader(answers), p.env(), args...)
}

func (p *person) must(answers string, args ...string) result {
	p.t.Helper()
	r := p.do(answers, args...)
	if r.code != 0 {
		p.t.Fatalf("%s: trikey %s: %+v", p.name, strings.Join(args, " "), r)
	}
	return r
}

// atTerminal runs a command at the terminal of the person's computer.
func (p *person) atTerminal(args ...string) *terminal {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), trikey, args...)
	cmd.Env = append(os.Environ(), p.env()...)
	return newTerminal(p.t, cmd)
}

func (p *person) login() {
	p.t.Helper()
	p.must(p.password+"\n"+p.code()+"\n", "login", "--name", p.name)
}

// token is that of the session that the person's computer keeps.
func (p *person) token() string {
	p.t.Helper()
	var s struct{ Token string }
	raw, err := os.ReadFile(filepath.Join(p.home, "trikey", "login.json"))
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return s.Token
}

var (
	secretOf   = regexp.MustCompile(`otpauth://\S+`)
	regexpHalf = regexp.MustCompile(`Your half of the code: (\S+)`)
)

// enrol has a person take an invitation up and log in.
func (o *office) enrol(name, role, one, other string) *person {
	o.t.Helper()
	p := &person{office: o, name: name, role: role, password: "pass phrase of " + name + " 1", home: o.t.TempDir()}
	r := p.do(one+"\n"+other+"\n"+p.password+"\n", "login", "--enrol", "--name", name)
	p.readSecret(r.err)
	p.login()
	return p
}

// readSecret puts the secret that enrolling has shown into the person's authenticator.
func (p *person) readSecret(shown string) {
	p.t.Helper()
	u, err := url.Parse(secretOf.FindString(shown))
	if err != nil || u.Query().Get("secret") == "" {
		p.t.Fatalf("enrol: %s", shown)
	}
	if p.totp, err = base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(u.Query().Get("secret")); err != nil {
		p.t.Fatal(err)
	}
}

// first makes the first person of a role, on the service's host.
func (o *office) first(name, role string) *person {
	o.t.Helper()
	var i struct {
		Half string
		Own  string `json:"own_half"`
	}
	o.ok("admin", "create", "--role", role, name, "-o", "json").json(o.t, &i)
	return o.enrol(name, role, i.Own, i.Half)
}

// admin calls the admin listener with a bearer token.
func (o *office) admin(token, method, path string, body any) answer {
	o.t.Helper()
	var r io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			o.t.Fatal(err)
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(o.t.Context(), method, o.addr+path, r)
	if err != nil {
		o.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := o.http.Do(req)
	if err != nil {
		o.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	a := answer{status: res.StatusCode, header: res.Header}
	if a.raw, err = io.ReadAll(res.Body); err != nil {
		o.t.Fatal(err)
	}
	_ = json.Unmarshal(a.raw, &a.body)
	return a
}

// TestPeople: the first person of each role enrols at a computer of their own, logs in over
// TLS to another address of the host, and manages the service from there.
func TestPeople(t *testing.T) {
	t.Parallel()
	o := newOffice(t, nil)
	ann := o.first("ann", "admin")
	if r := o.run("admin", "create", "--role", "admin", "mallory"); r.code != 4 || !strings.Contains(r.err, "there is an admin already") {
		t.Errorf("a second admin over the socket: %+v", r)
	}
	oz := o.first("oz", "officer")
	aud := o.first("aud", "auditor")
	if r := ann.must("", "whoami", "-o", "json"); !strings.Contains(r.out, `"role": "admin"`) || strings.Contains(r.out, "token") {
		t.Errorf("whoami: %s", r.out)
	}
	if info, err := os.Stat(filepath.Join(ann.home, "trikey", "login.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the session's file: %v, %v", info, err)
	}
	ann.must("", "key", "create", "--index", "7", "--name", "chat")
	for _, p := range []*person{ann, oz, aud} {
		if r := p.must("", "key", "show", "7", "-o", "json"); !strings.Contains(r.out, `"chat"`) {
			t.Errorf("%s: %s", p.name, r.out)
		}
	}
	for _, p := range []*person{oz, aud} {
		if r := p.do("", "key", "create", "--index", "8", "--name", "x"); r.code != 4 || !strings.Contains(r.err, "not for the role") {
			t.Errorf("%s makes a key: %+v", p.name, r)
		}
	}
	o.ok("key", "create", "--index", "9", "--name", "local") // the socket goes on as before
	if r := o.ok("audit", "tail", "-n", "50", "-o", "json"); !strings.Contains(r.out, "admin:ann") || !strings.Contains(r.out, "127.0.0.1") {
		t.Errorf("the audit log does not say who made the key: %s", r.out)
	}

	token := ann.token()
	ann.must("", "logout")
	if a := o.admin(token, "GET", "/admin/v1/session", nil); a.status != 401 {
		t.Errorf("after logout: %d", a.status)
	}
	if r := ann.do("", "key", "list"); r.code != 4 || !strings.Contains(r.err, "not logged in") {
		t.Errorf("after logout: %+v", r)
	}
	ann.login()
	next := "another pass phrase 2"
	ann.must(ann.password+"\n"+next+"\n"+ann.code()+"\n", "admin", "password")
	if r := ann.do("", "whoami"); r.code != 4 {
		t.Errorf("a session of the password before: %+v", r)
	}
	code := ann.code()
	if r := ann.do(ann.password+"\n"+code+"\n", "login", "--name", "ann"); r.code != 4 {
		t.Errorf("the password before: %+v", r)
	}
	ann.password = next
	ann.must(next+"\n"+code+"\n", "login", "--name", "ann") // a failed try uses no code up
	token = oz.token()
	o.kill() // sessions are the process's
	o.open()
	if a := o.admin(token, "GET", "/admin/v1/session", nil); a.status != 401 {
		t.Errorf("a session after a restart: %d %s", a.status, a.raw)
	}
}

// TestLoginRefusals: whatever is wrong is the same answer; a code counts once; five failures
// lock a person out at that address and nowhere else; passwords follow the rules.
func TestLoginRefusals(t *testing.T) {
	t.Parallel()
	o := newOffice(t, nil)
	ann := o.first("ann", "admin")
	login := func(name, password, code string) answer {
		return o.admin("", "POST", "/admin/v1/login", object{"name": name, "password": []byte(password), "code": code})
	}
	used := totp(ann.totp, ann.last)
	var detail string
	for what, a := range map[string]answer{
		"a code that was used": login("ann", ann.password, used), "a wrong password": login("ann", "wrong password 12", ann.code()),
		"nobody": login("nobody", ann.password, used), "no name": login("\x00", "", ""),
	} {
		o.wantError(a, 401, "unauthorized")
		if detail == "" {
			detail = a.text("detail")
		}
		if a.text("detail") != detail {
			t.Errorf("%s: %q, elsewhere %q", what, a.text("detail"), detail)
		}
	}
	for i := range 4 { // two of five are gone
		a := login("ann", "wrong password 12", "000000")
		if i < 3 {
			o.wantError(a, 401, "unauthorized")
			continue
		}
		o.wantError(a, 429, "locked_out")
		if a.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	o.wantError(login("ann", ann.password, ann.code()), 429, "locked_out")
	if r := ann.must("", "whoami"); !strings.Contains(r.out, "ann") {
		t.Errorf("the session of before: %+v", r)
	}
	elsewhere := *o
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 3)}}
	transport := o.http.Transport.(*http.Transport).Clone()
	transport.DialContext = d.DialContext
	elsewhere.http = &http.Client{Transport: transport, Timeout: 30 * time.Second}
	defer transport.CloseIdleConnections()
	body := object{"name": "ann", "password": []byte(ann.password), "code": ann.code()}
	if a := elsewhere.admin("", "POST", "/admin/v1/login", body); a.status != 200 {
		t.Errorf("from another address: %d %s", a.status, a.raw)
	}
	if r := o.run("admin", "create", "--role", "officer", "oz", "-o", "json"); r.code == 0 {
		var i struct {
			Half string
			Own  string `json:"own_half"`
		}
		r.json(t, &i)
		for password, code := range map[string]string{"short": "bad_request", "aaaaaaaaaaaaaa": "bad_request"} {
			a := o.admin("", "POST", "/admin/v1/enrol", object{"name": "oz", "halves": []string{i.Half, i.Own}, "password": []byte(password)})
			o.wantError(a, 400, code)
		}
		good := []byte("pass phrase of oz 1")
		o.wantError(o.admin("", "POST", "/admin/v1/enrol", object{"name": "oz", "halves": []string{i.Half, i.Half}, "password": good}), 401, "unauthorized")
		if a := o.admin("", "POST", "/admin/v1/enrol", object{"name": "oz", "halves": []string{i.Half, i.Own}, "password": good}); a.status != 200 {
			t.Errorf("enrol: %d %s", a.status, a.raw)
		}
		o.wantError(o.admin("", "POST", "/admin/v1/enrol", object{"name": "oz", "halves": []string{i.Half, i.Own}, "password": good}), 401, "unauthorized")
	}
	if log := o.log.String(); strings.Contains(log, ann.password) || strings.Contains(log, "tks_") {
		t.Error("the log has a secret")
	}
}
