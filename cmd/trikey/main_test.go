package main_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/trikey/trikey/internal/memscan"
	"github.com/trikey/trikey/internal/netlab"
)

// These tests drive the built command from outside: real processes, SoftHSM tokens,
// files, sockets and TLS.

// trikey is the path of the command under test; trikeyFailpoint that of the same command
// with places at which it can be made to die.
var trikey, trikeyFailpoint string

// binaries is set to the directory that has them.
const binaries = "TRIKEY_TEST_BINARIES"

func TestMain(m *testing.M) {
	if pid := os.Getenv("TRIKEY_TEST_SCAN"); pid != "" {
		os.Exit(scanMain(pid))
	}
	if dir := os.Getenv(binaries); dir != "" { // a test that was run anew, in namespaces
		trikey, trikeyFailpoint = filepath.Join(dir, "trikey"), filepath.Join(dir, "trikey-failpoint")
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "trikey-test-")
	if err != nil {
		panic(err)
	}
	_ = os.Setenv(binaries, dir)
	trikey, trikeyFailpoint = filepath.Join(dir, "trikey"), filepath.Join(dir, "trikey-failpoint")
	for _, args := range [][]string{{"-o", trikey}, {"-tags", "failpoint", "-o", trikeyFailpoint}} {
		if out, err := exec.Command("go", append(append([]string{"build", "-buildvcs=false"}, args...), ".")...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			os.Exit(1)
		}
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// scanMain is the scanning process of TestMemory: needles on standard input, report on
// standard output.
func scanMain(pid string) int {
	n, err := strconv.Atoi(pid)
	var needles []memscan.Needle
	if err == nil {
		err = json.NewDecoder(os.Stdin).Decode(&needles)
	}
	var report memscan.Report
	if err == nil {
		report, err = memscan.Scan(n, needles)
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(report)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// site is a directory made by trikey demo --setup-only, and the service in it.
type site struct {
	t      *testing.T
	dir    string
	api    string // https://host:port
	grpc   string // host:port
	ops    string // http://host:port
	client *http.Client
	serve  *exec.Cmd
	exited chan struct{} // closed when serve has ended
	log    *bytes.Buffer
	verb   []string     // that runs it; serve when nil
	on     *netlab.Host // where the service runs; nil: here
	key    string       // of the app that createApp made
	secret string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: filepath.Join(t.TempDir(), "site"), log: &bytes.Buffer{}}
	if r := run(t, nil, nil, "demo", "--dir", s.dir, "--setup-only"); r.code != 0 {
		t.Fatalf("setup: %+v", r)
	}
	var cfg struct {
		API  struct{ Listen string }
		GRPC struct{ Listen string }
		Ops  struct{ Listen string }
	}
	raw, err := os.ReadFile(s.path("trikey.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(raw, &cfg); err != nil {
		t.Fatal(err)
	}
	s.api, s.grpc, s.ops = "https://"+cfg.API.Listen, cfg.GRPC.Listen, "http://"+cfg.Ops.Listen
	s.trust(s.path("ca.pem"))
	t.Cleanup(s.kill)
	return s
}

// trust has the site's client take certificates of these authorities.
func (s *site) trust(ca string) {
	s.t.Helper()
	pem, err := os.ReadFile(ca)
	if err != nil {
		s.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	s.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}}
}

func (s *site) path(name ...string) string { return filepath.Join(append([]string{s.dir}, name...)...) }

// start runs the service and waits until it answers.
func (s *site) start(env ...string) {
	s.t.Helper()
	s.startBinary(trikey, env...)
}

func (s *site) startBinary(binary string, env ...string) {
	s.t.Helper()
	s.log.Reset()
	verb, command := s.verb, exec.CommandContext
	if verb == nil {
		verb = []string{"serve"}
	}
	if s.on != nil {
		command = s.on.Command
	}
	s.serve = command(s.t.Context(), binary, append(verb, "--config", s.path("trikey.yaml"))...)
	s.serve.Env = append(os.Environ(), env...)
	s.serve.Stderr = s.log
	if err := s.serve.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.exited = make(chan struct{})
	go func(serve *exec.Cmd, exited chan struct{}) {
		_ = serve.Wait()
		close(exited)
	}(s.serve, s.exited)
	deadline := time.Now().Add(30 * time.Second)
	for {
		if r, err := http.Get(s.ops + "/livez"); err == nil {
			_ = r.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the service does not answer:\n%s", s.log)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// kill ends the service as kill -9 does.
func (s *site) kill() {
	if s.serve != nil {
		_ = s.serve.Process.Kill()
		<-s.exited
		s.serve = nil
	}
	s.client.CloseIdleConnections()
}

// pins returns the arguments that name PIN files.
func (s *site) pins(names ...string) (args []string) {
	for _, n := range names {
		if !filepath.IsAbs(n) {
			n = s.path("pins", n)
		}
		args = append(args, "--pin-file", n)
	}
	return args
}

func (s *site) unseal(pins ...string) result {
	s.t.Helper()
	return s.run(append([]string{"machine", "unseal"}, s.pins(pins...)...)...)
}

// open starts the service and unseals it.
func (s *site) open(env ...string) {
	s.t.Helper()
	s.start(env...)
	if r := s.unseal("1", "2", "3"); r.code != 0 {
		s.t.Fatalf("unseal: %+v", r)
	}
}

type result struct {
	out, err string
	code     int
}

// json decodes the output.
func (r result) json(t *testing.T, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.out), into); err != nil || r.code != 0 {
		t.Fatalf("%+v: %v", r, err)
	}
}

func (s *site) run(args ...string) result {
	s.t.Helper()
	return run(s.t, nil, nil, append(args, "--config", s.path("trikey.yaml"))...)
}

// ok runs a command that must succeed.
func (s *site) ok(args ...string) result {
	s.t.Helper()
	r := s.run(args...)
	if r.code != 0 {
		s.t.Fatalf("trikey %s: %+v", strings.Join(args, " "), r)
	}
	return r
}

func run(t *testing.T, stdin io.Reader, env []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, trikey, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = stdin
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{out.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func (s *site) createApp(name, allow string, grants ...string) {
	s.t.Helper()
	args := []string{"app", "create", "--name", name, "--allow-ip", allow, "-o", "json"}
	for _, g := range grants {
		args = append(args, "--grant", g)
	}
	var app struct {
		Name      string
		AppKey    string `json:"app_key"`
		AppSecret string `json:"app_secret"`
	}
	s.ok(args...).json(s.t, &app)
	if app.Name != name || app.AppKey == "" || len(app.AppSecret) < 43 {
		s.t.Fatalf("app create: %+v", app)
	}
	s.key, s.secret = app.AppKey, app.AppSecret
}

// object is a JSON object.
type object = map[string]any

// answer is an HTTP answer.
type answer struct {
	status int
	body   object
	raw    []byte
	header http.Header
}

func (a answer) code() string { c, _ := a.body["code"].(string); return c }

func (a answer) text(field string) string { v, _ := a.body[field].(string); return v }

// call sends a request as the app. A body that is an object is sent as JSON, anything
// else as it is.
func (s *site) call(method, path string, body any, header ...string) answer {
	s.t.Helper()
	var r io.Reader
	switch body := body.(type) {
	case nil:
	case []byte:
		r = bytes.NewReader(body)
	case string:
		r = strings.NewReader(body)
	default:
		raw, err := json.Marshal(body)
		if err != nil {
			s.t.Fatal(err)
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.api+path, r)
	if err != nil {
		s.t.Fatal(err)
	}
	req.SetBasicAuth(s.key, s.secret)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return s.send(req)
}

func (s *site) send(req *http.Request) answer {
	s.t.Helper()
	res, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	a := answer{status: res.StatusCode, header: res.Header}
	if a.raw, err = io.ReadAll(res.Body); err != nil {
		s.t.Fatal(err)
	}
	_ = json.Unmarshal(a.raw, &a.body) // a raw body is no JSON
	return a
}

func (s *site) post(path string, body any, header ...string) answer {
	s.t.Helper()
	return s.call(http.MethodPost, path, body, header...)
}

// encrypt returns a ciphertext.
func (s *site) encrypt(key string, plaintext []byte, context object) string {
	s.t.Helper()
	a := s.post("/v1/keys/"+key+"/encrypt", object{"plaintext": plaintext, "context": context})
	if a.status != 200 {
		s.t.Fatalf("encrypt: %d %s", a.status, a.raw)
	}
	return a.text("ciphertext")
}

func (s *site) wantError(a answer, status int, code string) {
	s.t.Helper()
	if a.status != status || a.code() != code || a.header.Get("Content-Type") != "application/problem+json" {
		s.t.Errorf("got %d %s %.300s, want %d %s", a.status, a.header.Get("Content-Type"), a.raw, status, code)
	}
}

// ready returns the statuses of /livez and /readyz.
func (s *site) ready() (live, ready int) {
	s.t.Helper()
	get := func(path string) int {
		r, err := http.Get(s.ops + path)
		if err != nil {
			s.t.Fatal(err)
		}
		_ = r.Body.Close()
		return r.StatusCode
	}
	return get("/livez"), get("/readyz")
}

// state returns what machine status tells.
func (s *site) state() string {
	s.t.Helper()
	var status struct {
		State      string
		Have, Need int
	}
	s.ok("machine", "status", "-o", "json").json(s.t, &status)
	return fmt.Sprintf("%s %d/%d", status.State, status.Have, status.Need)
}
