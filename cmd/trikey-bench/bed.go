package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"go.yaml.in/yaml/v3"

	"github.com/trikey/trikey/internal/httpsig"
)

// bed is the service under test and the empty handler beside it, each a process of its
// own.
type bed struct {
	name   string
	binary string // the command to measure
	dir    string
	site   string // made by trikey demo
	config string
	env    []string // of the service
	ops    string
	client *http.Client
	roots  *x509.CertPool
	key    string
	secret string
	trikey target
	empty  target

	rpcAddress string
	rpc        *rpc // nil without the cases over gRPC
}

type target struct {
	address string
	process *exec.Cmd
	more    []*exec.Cmd // that work for it: crypto machines which run apart
}

// cpu returns the processor time of all its processes.
func (t target) cpu() (total time.Duration, err error) {
	for _, p := range append([]*exec.Cmd{t.process}, t.more...) {
		used, err := cpuOf(p.Process.Pid)
		if err != nil {
			return 0, err
		}
		total += used
	}
	return total, nil
}

// emptyVariable tells a process to be the empty handler; its value is the directory
// with the certificate.
const emptyVariable = "TRIKEY_BENCH_EMPTY"

// newBed sets up a service, which finds env in its environment.
func newBed(ctx context.Context, trikey string, env ...string) (b *bed, err error) {
	b = &bed{env: env}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.dir, err = os.MkdirTemp("", "trikey-bench-"); err != nil {
		return b, err
	}
	b.binary, b.site = trikey, filepath.Join(b.dir, "site")
	b.config = filepath.Join(b.site, "trikey.yaml")
	if err := b.command(ctx, nil, "demo", "--dir", b.site, "--setup-only"); err != nil {
		return b, err
	}
	if err := b.start(ctx); err != nil {
		return b, err
	}
	if err := b.unseal(ctx); err != nil {
		return b, err
	}
	return b, b.makeApp(cli{ctx, trikey}, b.config)
}

// cli runs the command that is measured.
type cli struct {
	ctx    context.Context
	trikey string
}

func (c cli) run(args ...string) ([]byte, error) {
	cmd := exec.CommandContext(c.ctx, c.trikey, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("trikey %s: %w", strings.Join(args[:2], " "), err)
	}
	return out, err
}

// unseal opens a machine with the cards of a site.
func (c cli) unseal(config, cards string) error {
	pin := func(n string) string { return "--pin-file=" + filepath.Join(cards, "pins", n) }
	_, err := c.run("machine", "unseal", "-o", "json", "--config", config, pin("1"), pin("2"), pin("3"))
	return err
}

// makeApp makes a key, and the app that the load comes from.
func (b *bed) makeApp(c cli, config string) error {
	if _, err := c.run("key", "create", "--config", config, "--index", "7", "--name", "chat"); err != nil {
		return err
	}
	var app struct {
		Name      string `json:"name"`
		AppKey    string `json:"app_key"`
		AppSecret string `json:"app_secret"`
	}
	out, err := c.run("app", "create", "--config", config, "--name", "im", "--allow-ip", "127.0.0.1/32",
		"--grant", "keys=1-4294967295;ops=encrypt,decrypt,reencrypt", "-o", "json")
	if err == nil {
		err = json.Unmarshal(out, &app)
	}
	b.key, b.secret = app.AppKey, app.AppSecret
	return err
}

// command runs trikey, and decodes what it prints.
func (b *bed) command(ctx context.Context, into any, args ...string) error {
	out, err := cli{ctx, b.binary}.run(args...)
	if err == nil && into != nil {
		err = json.Unmarshal(out, into)
	}
	return err
}

func (b *bed) unseal(ctx context.Context) error { return cli{ctx, b.binary}.unseal(b.config, b.site) }

// server is the service, to be started.
func (b *bed) server(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.binary, "serve", "--config", b.config)
	cmd.Env = append(os.Environ(), b.env...)
	return cmd
}

// start runs both servers and waits for them.
func (b *bed) start(ctx context.Context) error {
	if err := b.address(b.site, b.config); err != nil {
		return err
	}
	b.trikey.process = b.server(ctx)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	b.empty = target{address: free.Addr().String(), process: exec.CommandContext(ctx, "/proc/self/exe")}
	if err := free.Close(); err != nil {
		return err
	}
	b.empty.process.Env = append(os.Environ(), emptyVariable+"="+filepath.Join(b.site, "tls"), emptyVariable+"_ADDR="+b.empty.address)
	for _, t := range []target{b.trikey, b.empty} {
		if err := t.process.Start(); err != nil {
			return err
		}
		if err := b.wait(ctx, t.address); err != nil {
			return err
		}
	}
	return nil
}

// address reads where the service listens, and makes a client for it.
func (b *bed) address(site, config string) error {
	raw, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	var cfg struct {
		API struct {
			Listen string `yaml:"listen"`
		} `yaml:"api"`
		GRPC struct {
			Listen string `yaml:"listen"`
		} `yaml:"grpc"`
		Ops struct {
			Listen string `yaml:"listen"`
		} `yaml:"ops"`
	}
	if err := yaml.Unmarshal(raw, &cfg); err != nil {
		return err
	}
	pem, err := os.ReadFile(filepath.Join(b.site, "ca.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	b.roots, b.rpcAddress = roots, cfg.GRPC.Listen
	b.trikey.address, b.ops = cfg.API.Listen, cfg.Ops.Listen
	b.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 256,
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}}
	return nil
}

func (b *bed) wait(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/", nil)
		if err != nil {
			return err
		}
		res, err := b.client.Do(req)
		if err == nil {
			return res.Body.Close()
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s does not answer: %w", address, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (b *bed) close() error {
	var failed error
	if b.rpc != nil {
		failed = b.rpc.close()
	}
	for _, t := range []target{b.trikey, b.empty} {
		if t.process != nil && t.process.Process != nil {
			_ = t.process.Process.Kill()
			_ = t.process.Wait()
		}
	}
	return errors.Join(failed, os.RemoveAll(b.dir))
}

// serveEmpty reads each body and answers with a few bytes; at barePath it encrypts.
func serveEmpty() error {
	dir := os.Getenv(emptyVariable)
	encrypt, err := bare()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc(barePath, encrypt)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"status":"ok"}`)
	})
	server := &http.Server{
		Addr: os.Getenv(emptyVariable + "_ADDR"), ReadHeaderTimeout: 10 * time.Second,
		Handler: mux,
	}
	return server.ListenAndServeTLS(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
}

func (b *bed) request(ctx context.Context, l load) (*http.Request, error) {
	t := b.trikey
	if l.empty {
		t = b.empty
	}
	path := l.path
	if l.spread > 0 {
		path = fmt.Sprintf("/v1/keys/%d/encrypt", firstOfMany+rand.IntN(l.spread))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+t.address+path, bytes.NewReader(l.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", l.contentType)
	if l.signed {
		return req, httpsig.Sign(req, l.body, httpsig.Key{ID: b.key, Secret: []byte(b.secret)}, time.Now())
	}
	req.SetBasicAuth(b.key, b.secret)
	return req, nil
}

func (b *bed) encryptOne(ctx context.Context, body []byte) (string, error) {
	req, err := b.request(ctx, load{path: "/v1/keys/7/encrypt", body: body, contentType: "application/json"})
	if err != nil {
		return "", err
	}
	res, err := b.client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	var out struct {
		Ciphertext string `json:"ciphertext"`
	}
	err = json.UnmarshalRead(res.Body, &out)
	return out.Ciphertext, err
}

// result is one case in one round.
type result struct {
	requests       float64
	took, cpu      time.Duration
	p50, p99, p999 time.Duration
}

// measure runs a case for a time.
func (b *bed) measure(ctx context.Context, l load, each time.Duration) (result, error) {
	t := b.trikey
	if l.empty {
		t = b.empty
	}
	before, err := t.cpu()
	if err != nil {
		return result{}, err
	}
	start := time.Now()
	latencies, failed := callers(l.concurrency, func() ([]time.Duration, error) {
		if l.call != nil {
			return repeat(l, start.Add(each))
		}
		return b.loop(ctx, l, start.Add(each))
	})
	r := result{requests: float64(len(latencies)), took: time.Since(start)}
	after, err := t.cpu()
	if failed != nil || err != nil || len(latencies) == 0 {
		return r, errors.Join(failed, err)
	}
	r.cpu = after - before
	at := func(q float64) time.Duration { return latencies[int(q*float64(len(latencies)-1))] }
	r.p50, r.p99, r.p999 = at(.5), at(.99), at(.999)
	return r, nil
}

func (b *bed) loop(ctx context.Context, l load, until time.Time) (latencies []time.Duration, err error) {
	for time.Now().Before(until) {
		req, err := b.request(ctx, l)
		if err != nil {
			return latencies, err
		}
		start := time.Now()
		res, err := b.client.Do(req)
		if err != nil {
			return latencies, err
		}
		_, err = io.Copy(io.Discard, res.Body)
		if err = errors.Join(err, res.Body.Close()); err != nil {
			return latencies, err
		}
		if res.StatusCode != http.StatusOK {
			return latencies, fmt.Errorf("answered %s", res.Status)
		}
		latencies = append(latencies, time.Since(start))
	}
	return latencies, nil
}

// clockTick is the unit of /proc/PID/stat: 10 ms on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// cpuOf returns the user and system time that a process has used.
func cpuOf(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the command's name in parentheses, with blanks in it perhaps.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	var total int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return time.Duration(total) * clockTick, nil
}
