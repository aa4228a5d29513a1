// Package etcdtest runs real etcd processes for tests, on loopback, with their data in
// the test's directory.
package etcdtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/trikey/trikey/internal/netlab"
)

// Installed is the etcd of the system's packages (Debian: etcd-server), the oldest that
// is supported.
func Installed(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		t.Fatalf("%v: install it (make test-deps)", err)
	}
	return path
}

var current = sync.OnceValues(func() (string, error) {
	root, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	mod := filepath.Join(filepath.Dir(strings.TrimSpace(string(root))), "tools", "etcd", "go.mod")
	var stderr bytes.Buffer
	cmd := exec.Command("go", "tool", "-modfile="+mod, "-n", "go.etcd.io/etcd/server/v3")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build etcd: %w: %s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
})

// Current is the etcd server of the client's version, built from tools/etcd.
func Current(t testing.TB) string {
	t.Helper()
	path, err := current()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Member is one etcd process.
type Member struct {
	Endpoint string
	t        testing.TB
	tls      *Files
	name     string
	peer     string // URL
	dir      string // of its data
	run      func(ctx context.Context, name string, args ...string) *exec.Cmd
	args     []string
	cmd      *exec.Cmd
	log      *os.File
}

// place is where a member listens.
type place struct{ client, peer string }

func (c Config) places(t testing.TB, n int) (all []place) {
	t.Helper()
	if len(c.Hosts) > 0 {
		for _, h := range c.Hosts {
			all = append(all, place{h.Addr + ":2379", h.Addr + ":2380"})
		}
		return all
	}
	ports := freePorts(t, 2*n)
	for i := range n {
		all = append(all, place{fmt.Sprint("127.0.0.1:", ports[2*i]), fmt.Sprint("127.0.0.1:", ports[2*i+1])})
	}
	return all
}

// Cluster is some members.
type Cluster []*Member

// Config is what a cluster shall be.
type Config struct {
	Binary  string
	Members int      // one when zero
	TLS     *Files   // clients must show a certificate; plain when nil
	Flags   []string // added to each member's

	// Hosts are where the members run, one each; on loopback when empty.
	Hosts []*netlab.Host
}

// Start runs a cluster, and waits until it has a leader.
func Start(t testing.TB, cfg Config) Cluster {
	t.Helper()
	n, scheme := max(cfg.Members, 1), "http"
	flags := append([]string{"--logger", "zap"}, cfg.Flags...)
	if f := cfg.TLS; f != nil {
		scheme = "https"
		flags = append(flags, "--client-cert-auth", "--trusted-ca-file", f.CA, "--cert-file", f.Server, "--key-file", f.ServerKey)
	}
	dir := t.TempDir()
	at := cfg.places(t, n)
	cluster := make(Cluster, n)
	var initial []string
	for i := range cluster {
		initial = append(initial, fmt.Sprintf("m%d=http://%s", i, at[i].peer))
	}
	for i := range cluster {
		client, peer := scheme+"://"+at[i].client, "http://"+at[i].peer
		m := &Member{Endpoint: client, t: t, tls: cfg.TLS, name: fmt.Sprint("m", i), peer: peer, dir: filepath.Join(dir, fmt.Sprint("m", i)), run: exec.CommandContext}
		if len(cfg.Hosts) > 0 {
			m.run = cfg.Hosts[i].Command
		}
		m.args = append([]string{
			cfg.Binary, "--name", m.name, "--data-dir", m.dir,
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-token", filepath.Base(dir),
		}, flags...)
		log, err := os.Create(filepath.Join(dir, fmt.Sprintf("m%d.log", i)))
		if err != nil {
			t.Fatal(err)
		}
		m.log = log
		t.Cleanup(func() { m.Kill(); _ = log.Close() })
		cluster[i] = m
		m.Start()
	}
	cluster.Wait()
	return cluster
}

// Endpoints are those of all members.
func (c Cluster) Endpoints() (all []string) {
	for _, m := range c {
		all = append(all, m.Endpoint)
	}
	return all
}

// Client returns a client of the cluster for what a test does behind the store's back.
func (c Cluster) Client(t testing.TB) *clientv3.Client {
	t.Helper()
	cfg := clientv3.Config{Endpoints: c.Endpoints(), DialTimeout: 10 * time.Second, Logger: zap.NewNop()}
	if f := c[0].tls; f != nil {
		cfg.TLS = f.client(t)
	}
	client, err := clientv3.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// Wait waits until the cluster takes writes.
func (c Cluster) Wait() {
	t := c[0].t
	t.Helper()
	client := c.Client(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, time.Second)
		_, err := client.Put(try, "ready", "")
		stop()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			out, _ := os.ReadFile(c[0].log.Name())
			t.Fatalf("etcd does not answer: %v\n%.3000s", err, out)
		}
	}
}

// Start runs the member, again after Kill.
func (m *Member) Start() {
	m.t.Helper()
	cmd := m.run(context.Background(), m.args[0], m.args[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // no ETCD_ settings of whoever runs the test
	cmd.Stdout, cmd.Stderr = m.log, m.log
	// A test that dies leaves no etcd behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.cmd = cmd
}

// Kill ends the member as a power failure does.
func (m *Member) Kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
		m.cmd = nil
	}
}

// Refill replaces a member that was killed, data and all, by an empty one of the same
// name: the others fill it. They must have a quorum.
func (c Cluster) Refill(m *Member) {
	m.t.Helper()
	client := c.Client(m.t)
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	list, err := client.MemberList(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, other := range list.Members {
		if other.Name == m.name {
			if _, err := client.MemberRemove(ctx, other.ID); err != nil {
				m.t.Fatal(err)
			}
		}
	}
	for {
		_, err := client.MemberAdd(ctx, []string{m.peer})
		if err == nil {
			break
		}
		// A cluster that has just lost a member takes no new one for some seconds
		// (etcd's strict reconfiguration check).
		select {
		case <-ctx.Done():
			m.t.Fatal(err)
		case <-time.After(200 * time.Millisecond):
		}
	}
	if err := os.RemoveAll(m.dir); err != nil {
		m.t.Fatal(err)
	}
	for i, arg := range m.args {
		if arg == "--initial-cluster-state" {
			m.args = append(m.args[:i:i], m.args[i+2:]...)
			break
		}
	}
	m.args = append(m.args, "--initial-cluster-state", "existing")
	m.Start()
}

// Well reports whether the member itself answers, with a quorum, in that time.
func (m *Member) Well(wait time.Duration) bool {
	client := Cluster{m}.Client(m.t)
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(m.t.Context(), wait)
	defer cancel()
	_, err := client.Get(ctx, "ready")
	return err == nil
}

// Dir is where the member keeps its data.
func (m *Member) Dir() string { return m.dir }

// Signal sends the member a signal: SIGSTOP makes it hang.
func (m *Member) Signal(s syscall.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		m.t.Fatal(err)
	}
}

// freePorts returns ports that nobody listened on a moment ago.
func freePorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}
