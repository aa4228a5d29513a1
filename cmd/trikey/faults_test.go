package main_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/internal/netlab"
	"github.com/trikey/trikey/keystore/etcd/etcdtest"
)

// part is one process of a cluster, on a host of its own.
type part struct {
	name   string
	kind   string // node or etcd
	host   *netlab.Host
	signal func(syscall.Signal)
	kill   func()
	start  func() // after kill
	refill func() // after kill: begin empty, and be filled by the others
	well   func() bool
}

// cluster is three nodes of the service and three members of etcd, each on a host.
type cluster struct {
	t     *testing.T
	nodes []*site
	etcd  etcdtest.Cluster
	parts []*part
	roots string // PEM file
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	lab := netlab.New(t)
	var hosts []*netlab.Host
	addresses := []string{lab.Here}
	for _, name := range []string{"etcd1", "etcd2", "etcd3", "node1", "node2", "node3"} {
		h := lab.Host(name)
		hosts, addresses = append(hosts, h), append(addresses, h.Addr)
	}
	files := etcdtest.NewFiles(t, addresses...)
	c := &cluster{t: t, roots: files.CA}
	c.etcd = etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Current(t), Members: 3, TLS: files, Hosts: hosts[:3]})
	for i, m := range c.etcd {
		c.parts = append(c.parts, &part{
			name: hosts[i].Name, kind: "etcd", host: hosts[i], signal: m.Signal, kill: m.Kill, start: m.Start,
			refill: func() { c.etcd.Refill(m) }, well: func() bool { return m.Well(time.Second) },
		})
	}
	for i, h := range hosts[3:] {
		s := c.node(i, h, files)
		c.nodes = append(c.nodes, s)
		c.parts = append(c.parts, &part{
			name: h.Name, kind: "node", host: h, kill: s.kill, well: s.serves,
			signal: func(sig syscall.Signal) { _ = s.serve.Process.Signal(sig) },
			start:  func() { s.start(); s.unsealWith(c.nodes[0]) },
			refill: func() { s.empty(); s.start(); s.unsealWith(c.nodes[0]) },
		})
	}
	return c
}

// node makes a node of the service on a host, and opens it.
func (c *cluster) node(i int, h *netlab.Host, files *etcdtest.Files) *site {
	c.t.Helper()
	var s *site
	if i == 0 {
		s = newSite(c.t)
		s.storeIn(c.etcd, files)
	} else {
		s = c.nodes[0].join()
	}
	s.configure(func(cfg *config.Config) {
		cfg.API.Listen, cfg.Admin.Listen, cfg.Ops.Listen = h.Addr+":7443", h.Addr+":7445", h.Addr+":7447"
		cfg.API.Cert, cfg.API.Key = files.Server, files.ServerKey
	})
	s.on, s.api, s.ops = h, "https://"+h.Addr+":7443", "http://"+h.Addr+":7447"
	s.trust(files.CA)
	s.start()
	if i == 0 {
		s.unsealWith(s)
	} else {
		s.unsealWith(c.nodes[0])
	}
	return s
}

// unsealWith opens the machine with the cards of the first site.
func (s *site) unsealWith(first *site) {
	s.t.Helper()
	if r := s.unseal(first.cards()...); r.code != 0 {
		s.t.Fatalf("unseal %s: %+v\n%s", s.ops, r, s.log)
	}
}

// empty takes from a node all it had but the public record of its machine, as on a host
// that is set up anew.
func (s *site) empty() {
	s.t.Helper()
	record, err := os.ReadFile(s.path("data", "machine.json"))
	if err == nil {
		err = os.RemoveAll(s.path("data"))
	}
	if err == nil {
		err = os.Mkdir(s.path("data"), 0o700)
	}
	if err == nil {
		err = os.WriteFile(s.path("data", "machine.json"), record, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// serves reports whether a node answers, with its store.
func (s *site) serves() bool {
	client := http.Client{Timeout: time.Second}
	r, err := client.Get(s.ops + "/readyz")
	if err != nil {
		return false
	}
	defer func() { _ = r.Body.Close() }()
	body := make([]byte, 1024)
	n, _ := r.Body.Read(body)
	return r.StatusCode == http.StatusOK && !strings.Contains(string(body[:n]), "degraded")
}

// trouble is something that happens to a part of a cluster, and how it ends.
type trouble struct {
	name       string
	begin, end func(*part)
}

var troubles = []trouble{
	{"killed", func(p *part) { p.kill() }, func(p *part) { p.start() }},
	{"paused", func(p *part) { p.signal(syscall.SIGSTOP) }, func(p *part) { p.signal(syscall.SIGCONT) }},
	{"cut off", func(p *part) { p.host.Cut() }, func(p *part) { p.host.Mend() }},
	{"slow", func(p *part) { p.host.Slow("200kbit") }, func(p *part) { p.host.Fast() }},
	{"refilled", func(p *part) { p.kill() }, func(p *part) { p.refill() }},
}

// holds is how long a trouble lasts.
const holds = 1500 * time.Millisecond

// TestFaults: three nodes and three members of etcd, on hosts of their own, under load.
// Every process is killed, paused, cut off, put on a slow line and replaced by an empty
// one, in turn; and each pair of processes is killed or cut off together. No result is
// wrong, no acknowledged change is lost, and a call fails only where no node was left.
func TestFaults(t *testing.T) {
	t.Parallel()
	if !netlab.Enter(t) {
		return
	}
	c := newCluster(t)
	load := c.load()
	defer load.stop()
	table := []string{"fault | calls | failed | slowest | well again after"}
	run := func(what string, left bool, begin, end func(), well func() bool) {
		before := load.snapshot()
		begin()
		time.Sleep(holds)
		over := time.Now()
		end()
		within(t, what+" is well again", well)
		took := time.Since(over)
		after := load.since(before)
		table = append(table, fmt.Sprintf("%s | %d | %d | %v | %v", what, after.calls, after.failed, after.slowest.Round(time.Millisecond), took.Round(time.Millisecond)))
		if left && after.failed > 0 {
			t.Errorf("%s: %d of %d calls failed, and nodes were left: %v", what, after.failed, after.calls, after.last)
		}
		if left && after.calls == 0 {
			t.Errorf("%s: nothing was called", what)
		}
	}
	for _, p := range c.parts {
		for _, f := range troubles {
			run(p.name+" "+f.name, true, func() { f.begin(p) }, func() { f.end(p) }, p.well)
		}
	}
	for i, p := range c.parts {
		for j, q := range c.parts[:i] {
			f := troubles[(i+j)%2*2] // killed, cut off
			run(fmt.Sprintf("%s and %s %s", p.name, q.name, f.name), true,
				func() { f.begin(p); f.begin(q) }, func() { f.end(q); f.end(p) }, func() bool { return p.well() && q.well() })
		}
	}
	load.stop()
	load.check()
	t.Logf("\n%s\n%d calls, %d management operations", strings.Join(table, "\n"), load.snapshot().calls, len(load.history.events))
}
