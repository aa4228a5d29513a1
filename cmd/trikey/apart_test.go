package main_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm/remote"
	"github.com/trikey/trikey/internal/testca"
)

// apart is a service and the crypto machines that it uses, each a process of its own with
// a directory of its own.
type apart struct {
	*site
	ca       *testca.Authority
	machines []*site
}

// newApart makes a service and so many machines, the first on a unix socket, the others
// over mutual TLS. All have one root key, which the cards of the first open.
func newApart(t *testing.T, machines int) *apart {
	t.Helper()
	ca, err := testca.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a := &apart{ca: ca}
	var addresses []string
	for i := range machines {
		m := newSite(t)
		m.verb = []string{"machine", "serve"}
		m.configure(func(cfg *config.Config) {
			if i == 0 {
				cfg.Machine.Socket = m.path("data", "services.sock")
				addresses = append(addresses, "unix://"+cfg.Machine.Socket)
			} else {
				cfg.Machine.Cards = a.machines[0].config().Machine.Cards
			}
			if i > 0 || machines == 1 {
				cfg.Machine.Listen, cfg.Machine.ClientCA, cfg.Machine.Services = freePort(t), ca.File, []string{"service"}
				cfg.Machine.Cert, cfg.Machine.Key = a.issue(t, fmt.Sprintf("machine-%d", i))
			}
			if i > 0 {
				addresses = append(addresses, cfg.Machine.Listen)
			}
		})
		a.machines = append(a.machines, m)
		if i > 0 {
			m.adopt(a.machines[0])
		}
	}
	a.site = newSite(t)
	a.configure(func(cfg *config.Config) {
		cfg.Machines, cfg.Machine = addresses, config.Default().Machine
		cfg.Link.CA = ca.File
		cfg.Link.Cert, cfg.Link.Key = a.issue(t, "service")
	})
	return a
}

func (a *apart) issue(t *testing.T, name string) (cert, key string) {
	t.Helper()
	cert, key, err := a.ca.Issue(name)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func (s *site) config() *config.Config {
	s.t.Helper()
	cfg, err := config.Load(s.path("trikey.yaml"), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return cfg
}

// adopt makes a blank machine of a site, and has it adopt the record of another.
func (s *site) adopt(from *site) {
	s.t.Helper()
	if err := os.Remove(s.path("data", "machine.json")); err != nil {
		s.t.Fatal(err)
	}
	record := s.path("record.json")
	s.write(record, []byte(from.ok("machine", "export-record").out))
	s.ok("machine", "adopt", "--record", record, "--kcv", from.recordKCV())
}

func (s *site) recordKCV() string {
	s.t.Helper()
	var r struct {
		KCV string `json:"kcv"`
	}
	s.ok("machine", "export-record").json(s.t, &r)
	return r.KCV
}

// openMachine starts one machine and opens it with the cards of the first.
func (a *apart) openMachine(i int) {
	a.t.Helper()
	m := a.machines[i]
	m.start()
	if r := m.unseal(a.machines[0].cards()...); r.code != 0 {
		a.t.Fatalf("unseal machine %d: %+v\n%s", i, r, m.log)
	}
}

// serveAll opens every machine, starts the service, and makes a key and an app.
func (a *apart) serveAll() {
	a.t.Helper()
	for i := range a.machines {
		a.openMachine(i)
	}
	a.start()
	within(a.t, "the service is ready", func() bool { _, ready := a.ready(); return ready == 200 })
	a.ok("key", "create", "--index", "7", "--name", "chat")
	a.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)
}

// up is how many machines get calls, as the service's metrics tell.
func (a *apart) up() int {
	a.t.Helper()
	_, metrics := a.get("/metrics")
	up := 0
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "trikey_machine_member_up{") && strings.HasSuffix(line, " 1\n") {
			up++
		}
	}
	return up
}

// traffic encrypts and decrypts until it is stopped, and fails the test when a call does.
type traffic struct {
	stop  context.CancelFunc
	done  sync.WaitGroup
	calls atomic.Int64
}

func (s *site) traffic(callers int) *traffic {
	ctx, stop := context.WithCancel(s.t.Context())
	l := &traffic{stop: stop}
	for c := range callers {
		l.done.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				plain := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "message %d of %d", i, c))
				var sealed, opened object
				err := s.try("/v1/keys/7/encrypt", object{"plaintext": plain}, &sealed)
				if err == nil {
					err = s.try("/v1/keys/7/decrypt", object{"ciphertext": sealed["ciphertext"]}, &opened)
				}
				if err != nil || opened["plaintext"] != plain {
					s.t.Errorf("a call failed: %v, %v", err, opened)
					return
				}
				l.calls.Add(2)
			}
		})
	}
	return l
}

// try is post for a goroutine.
func (s *site) try(path string, body, into any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, s.api+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.SetBasicAuth(s.key, s.secret)
	res, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != 200 {
		var problem object
		_ = json.NewDecoder(res.Body).Decode(&problem)
		return fmt.Errorf("%s: %v", res.Status, problem["detail"])
	}
	return json.NewDecoder(res.Body).Decode(into)
}

// goesOn waits until many more calls have been answered.
func (l *traffic) goesOn(t *testing.T) {
	t.Helper()
	before := l.calls.Load()
	within(t, "calls go on", func() bool { return l.calls.Load() > before+50 })
}

func (l *traffic) end() {
	l.stop()
	l.done.Wait()
}

// TestApart: three machines apart, one by a unix socket and two by mutual TLS, opened by
// the same three cards. Under load each is killed, stopped and drained in turn, and no
// call fails; with none left the service says that it is not ready, and comes back by
// itself.
func TestApart(t *testing.T) {
	t.Parallel()
	a := newApart(t, 3)
	a.serveAll()
	within(t, "three machines serve", func() bool { return a.up() == 3 })
	l := a.traffic(4)
	l.goesOn(t)
	for i, m := range a.machines {
		m.kill() // as kill -9 does
		within(t, "the service notices", func() bool { return a.up() == 2 })
		l.goesOn(t)
		a.openMachine(i)
		within(t, "it is back", func() bool { return a.up() == 3 })

		if err := m.serve.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		took := within(t, "the service notices", func() bool { return a.up() == 2 })
		l.goesOn(t)
		t.Logf("machine %d: out of use %v after SIGSTOP", i, took.Round(time.Millisecond))
		if err := m.serve.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		within(t, "it is back", func() bool { return a.up() == 3 })

		if err := m.serve.Process.Signal(syscall.SIGTERM); err != nil { // a rolling restart
			t.Fatal(err)
		}
		<-m.exited
		l.goesOn(t)
		m.kill()
		a.openMachine(i)
		within(t, "it is back", func() bool { return a.up() == 3 })
	}
	// One is taken out of the list, and the service told.
	a.configure(func(cfg *config.Config) { cfg.Machines = cfg.Machines[:2] })
	if err := a.serve.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	within(t, "two are left", func() bool { return a.up() == 2 })
	l.goesOn(t)
	l.end()
	for _, m := range a.machines[:2] {
		m.ok("machine", "seal")
	}
	within(t, "not ready", func() bool { _, ready := a.ready(); return ready == 503 })
	within(t, "sealed", func() bool {
		r := a.post("/v1/keys/7/encrypt", object{"plaintext": []byte("x")})
		return r.status == 503 && r.code() == "sealed"
	})
	if r := a.machines[1].unseal(a.machines[0].cards()...); r.code != 0 {
		t.Fatal(r)
	}
	within(t, "ready again", func() bool { _, ready := a.ready(); return ready == 200 })
	a.encrypt("7", []byte("x"), nil)
	// The service's own log is whole, and by its own key.
	if r := a.ok("audit", "verify", "-o", "json"); !strings.Contains(r.out, "signed") {
		t.Errorf("audit verify: %+v", r)
	}
	for _, m := range a.machines {
		m.ok("audit", "verify")
	}
}

// TestApartStrangers: a certificate of a service opens no ceremony, and no other
// certificate anything; a machine has no data API and no key store; what would part it from
// the key store is refused; and a machine of another root gets no call.
func TestApartStrangers(t *testing.T) {
	t.Parallel()
	a := newApart(t, 1)
	m := a.machines[0]
	a.serveAll()
	cfg := m.config()
	service, err := a.ca.TLS("service")
	if err != nil {
		t.Fatal(err)
	}
	other, err := a.ca.TLS("another")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/status", "/v1/cards", "/v1/seal", "/v1/begin", "/v1/keys/7/encrypt", "/v1/apps"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: service, ForceAttemptHTTP2: true}}
			req, err := http.NewRequestWithContext(t.Context(), method, "https://"+cfg.Machine.Listen+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			if res, err := client.Do(req); err == nil {
				_ = res.Body.Close()
				if res.StatusCode < 400 {
					t.Errorf("%s %s: %s", method, path, res.Status)
				}
			}
		}
	}
	if m.state() != "open 3/3" {
		t.Errorf("the machine is %s", m.state())
	}
	for name, c := range map[string]*tls.Config{"another's": other, "none": {RootCAs: a.ca.Pool(), MinVersion: tls.VersionTLS13}} {
		machine, err := remote.Dial(remote.Config{Address: cfg.Machine.Listen, TLS: c})
		if name == "none" {
			if err == nil {
				t.Error("a connection without a certificate was tried")
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if s, err := machine.Status(t.Context()); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
		_ = machine.Close()
	}
	m.holdsNoStore()
	if conn, err := net.Dial("tcp", strings.TrimPrefix(m.api, "https://")); err == nil {
		_ = conn.Close()
		t.Error("the machine listens for the data API")
	}
	for _, ceremony := range []string{"resplit", "replace-card", "rotate-root"} {
		if r := m.run(append([]string{"machine", ceremony}, m.pins("1", "2", "3")...)...); r.code == 0 || !strings.Contains(r.err, "trikey machine adopt") {
			t.Errorf("%s: %+v", ceremony, r)
		}
	}
	if r := a.run("machine", "status"); r.code != 2 || !strings.Contains(r.err, "unix://") {
		t.Errorf("machine status of a service: %+v", r)
	}
	// A second machine, of another root.
	b := newSite(t)
	b.verb = m.verb
	b.configure(func(c *config.Config) { c.Machine.Socket = b.path("data", "services.sock") })
	b.open()
	a.configure(func(c *config.Config) { c.Machines = append(c.Machines, "unix://"+b.path("data", "services.sock")) })
	if err := a.serve.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	_, metrics := b.get("/metrics")
	within(t, "it is a member", func() bool { _, all := a.get("/metrics"); return strings.Contains(all, b.dir) })
	for range 20 {
		a.encrypt("7", []byte("x"), nil)
	}
	if _, after := b.get("/metrics"); a.up() != 1 || strings.Contains(after, "trikey_machine_calls_total{") {
		t.Errorf("%d machines serve; the one of another root had calls:\n%s", a.up(), metrics)
	}
	if r := b.run("machine", "adopt", "--record", m.recordFile(), "--kcv", m.recordKCV()); r.code == 0 {
		t.Errorf("a machine that runs, with a root of its own, adopted another: %+v", r)
	}
	b.kill()
	if r := b.run("machine", "adopt", "--record", m.recordFile(), "--kcv", m.recordKCV()); r.code == 0 || !strings.Contains(r.err, "root key of its own") {
		t.Errorf("a machine with a root of its own adopted another: %+v", r)
	}
}

func (s *site) recordFile() string {
	s.t.Helper()
	path := s.path("exported.json")
	s.write(path, []byte(s.ok("machine", "export-record").out))
	return path
}

// holdsNoStore looks at the files that the process of a machine has open.
func (s *site) holdsNoStore() {
	s.t.Helper()
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.serve.Process.Pid))
	if err != nil || len(open) == 0 {
		s.t.Fatalf("%d files, %v", len(open), err)
	}
	var names []string
	for _, fd := range open {
		if name, err := os.Readlink(fd); err == nil {
			names = append(names, name)
		}
	}
	if slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, "store.db") }) {
		s.t.Errorf("a machine has a key store open: %v", names)
	}
	if _, err := os.Stat(s.path("data", "store.db")); err == nil {
		s.t.Error("a machine has made a key store")
	}
	if _, err := os.Stat(s.path("data", "admin.sock")); err == nil {
		s.t.Error("a machine has an admin socket")
	}
}

// TestApartRotate: what docs/operations.md says of ceremonies that change the key store:
// they are conducted with one machine and the store in one process, and the other machines
// adopt the record.
func TestApartRotate(t *testing.T) {
	t.Parallel()
	a := newApart(t, 2)
	a.serveAll()
	sealed := a.encrypt("7", []byte("text"), nil)
	a.kill()
	first, second := a.machines[0], a.machines[1]
	before := first.path("before.json")
	if err := os.Rename(first.recordFile(), before); err != nil {
		t.Fatal(err)
	}
	first.kill()
	second.kill()
	move := func(from, to *site) {
		for _, name := range []string{"store.db", "epochs"} {
			raw, err := os.ReadFile(from.path("data", name))
			if err != nil {
				t.Fatal(err)
			}
			to.write(to.path("data", name), raw)
		}
	}
	move(a.site, first)
	first.verb = nil
	first.open()
	first.ok(append([]string{"machine", "rotate-root"}, first.pins("1", "2", "3")...)...)
	first.kill()
	move(first, a.site)
	if err := os.Remove(first.path("data", "store.db")); err != nil {
		t.Fatal(err)
	}
	first.verb = second.verb
	for _, bad := range []struct{ record, kcv, says string }{
		{first.recordFile(), "cmac-aes:000000", "compare with the machine"},
		{first.path("trikey.yaml"), first.recordKCV(), "not a machine's record"},
	} {
		if r := second.run("machine", "adopt", "--record", bad.record, "--kcv", bad.kcv); r.code != 6 || !strings.Contains(r.err, bad.says) {
			t.Errorf("adopt %+v: %+v", bad, r)
		}
	}
	second.ok("machine", "adopt", "--record", first.recordFile(), "--kcv", first.recordKCV())
	var old struct {
		KCV string `json:"kcv"`
	}
	raw, err := os.ReadFile(before)
	if err != nil || json.Unmarshal(raw, &old) != nil {
		t.Fatal(err)
	}
	if r := second.run("machine", "adopt", "--record", before, "--kcv", old.KCV); r.code == 0 || !strings.Contains(r.err, "older") {
		t.Errorf("an older record was adopted: %+v", r)
	}
	a.openMachine(1)
	a.openMachine(0)
	a.start()
	within(t, "the service is ready", func() bool { _, ready := a.ready(); return ready == 200 })
	if !a.decrypts(sealed, "dGV4dA==") {
		t.Error("a ciphertext of before does not open")
	}
	within(t, "both machines serve", func() bool { return a.up() == 2 })
	a.ok("audit", "verify")
}

// TestApartBackup: a service whose machines run apart backs up, and is restored on another
// host through the machines; a host with a machine of its own is told what it lacks.
func TestApartBackup(t *testing.T) {
	t.Parallel()
	a := newApart(t, 2)
	a.serveAll()
	sealed := a.encrypt("7", []byte("text"), nil)
	file, epochs := a.path("backup"), a.path("epochs.copy")
	a.ok("backup", "create", "--out", file)
	a.ok("backup", "epochs", "--out", epochs)
	a.ok("backup", "drill", file, "--epochs", epochs)
	a.kill()
	alone := a.machines[0].bare()
	if r := alone.restore(a.machines[0].cards(), file, "--epochs", epochs); r.code != 6 || !strings.Contains(r.err, "run apart") {
		t.Errorf("on a host with a machine of its own: %+v", r)
	}
	alone.untouched()
	b := newSite(t)
	from := a.config()
	b.configure(func(c *config.Config) { c.Machines, c.Machine, c.Link = from.Machines, from.Machine, from.Link })
	if err := os.RemoveAll(b.path("data")); err != nil {
		t.Fatal(err)
	}
	if r := b.run("backup", "restore", file, "--epochs", epochs); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	b.use(a.site)
	b.start()
	within(t, "the service is ready", func() bool { _, ready := b.ready(); return ready == 200 })
	b.opens(sealed, "dGV4dA==")
}
