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
	host   *netlab.Host
	signal func(syscall.Signal)
	kill   func()
	start  func() // after kill
	refill func() // after kill: begin empty, and be filled by the others
	well   func() bool
}

// cluster is three nodes of the service, three crypto machines apart from them, and three
// members of etcd, each on a host of its own.
type cluster struct {
	t        *testing.T
	lab      *netlab.Lab
	nodes    []*site
	machines []*site
	etcd     etcdtest.Cluster
	parts    []*part
	files    *etcdtest.Files
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	lab := netlab.New(t)
	hosts, addresses := map[string][]*netlab.Host{}, []string{lab.Here}
	for _, kind := range []string{"etcd", "machine", "node"} {
		for i := range 3 {
			h := lab.Host(fmt.Sprint(kind, i+1))
			hosts[kind], addresses = append(hosts[kind], h), append(addresses, h.Addr)
		}
	}
	c := &cluster{t: t, lab: lab, files: etcdtest.NewFiles(t, addresses...)}
	c.etcd = etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Current(t), Members: 3, TLS: c.files, Hosts: hosts["etcd"]})
	for i, m := range c.etcd {
		c.parts = append(c.parts, &part{
			name: hosts["etcd"][i].Name, host: hosts["etcd"][i], signal: m.Signal, kill: m.Kill, start: m.Start,
			refill: func() { c.etcd.Refill(m) }, well: func() bool { return m.Well(time.Second) },
		})
	}
	for _, h := range hosts["machine"] {
		c.machine(h)
	}
	for _, h := range hosts["node"] {
		c.node(h, hosts["machine"])
	}
	return c
}

// machine makes a crypto machine on a host, and opens it with the cards of the first.
func (c *cluster) machine(h *netlab.Host) {
	c.t.Helper()
	m := newSite(c.t)
	m.verb = []string{"machine", "serve"}
	m.configure(func(cfg *config.Config) {
		cfg.Machine.Listen, cfg.Machine.ClientCA, cfg.Machine.Services = h.Addr+":7446", c.files.CA, []string{"client"}
		cfg.Machine.Cert, cfg.Machine.Key = c.files.Server, c.files.ServerKey
		if len(c.machines) > 0 {
			cfg.Machine.Cards = c.machines[0].config().Machine.Cards
		}
	})
	if len(c.machines) > 0 {
		m.adopt(c.machines[0])
	}
	c.add(m, h, func() { m.start(); m.unsealWith(c.machines[0]) }, "machine.json")
	c.machines = append(c.machines, m)
	m.start()
	m.unsealWith(c.machines[0])
}

// node makes a node of the service on a host.
func (c *cluster) node(h *netlab.Host, machines []*netlab.Host) {
	c.t.Helper()
	s := newSite(c.t)
	s.storeIn(c.etcd, c.files)
	s.configure(func(cfg *config.Config) {
		cfg.Machines, cfg.Machine = nil, config.Default().Machine
		for _, m := range machines {
			cfg.Machines = append(cfg.Machines, m.Addr+":7446")
		}
		cfg.Link.CA, cfg.Link.Cert, cfg.Link.Key = c.files.CA, c.files.Client, c.files.ClientKey
		cfg.API.Listen, cfg.GRPC.Listen, cfg.Admin.Listen = h.Addr+":7443", h.Addr+":7444", ""
		cfg.API.Cert, cfg.API.Key = c.files.Server, c.files.ServerKey
	})
	s.api = "https://" + h.Addr + ":7443"
	s.trust(c.files.CA)
	if len(c.nodes) > 0 {
		s.copyEpochs(c.nodes[0])
	}
	c.add(s, h, func() { s.start() }, "epochs")
	c.nodes = append(c.nodes, s)
	s.start()
	within(c.t, h.Name+" serves", s.serves)
}

// add makes a part of a site. When it is refilled it keeps one file: what a new one would
// be given from another.
func (c *cluster) add(s *site, h *netlab.Host, start func(), keeps string) {
	s.configure(func(cfg *config.Config) { cfg.Ops.Listen = h.Addr + ":7447" })
	s.on, s.ops = h, "http://"+h.Addr+":7447"
	c.parts = append(c.parts, &part{
		name: h.Name, host: h, kill: s.kill, start: start, well: s.serves,
		signal: func(sig syscall.Signal) { _ = s.serve.Process.Signal(sig) },
		refill: func() { s.empty(keeps); start() },
	})
}

// copyEpochs gives a node the destruction keys of another.
func (s *site) copyEpochs(from *site) {
	s.t.Helper()
	content, err := os.ReadFile(from.path("data", "epochs"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(s.path("data", "epochs"), content)
}

// unsealWith opens the machine with the cards of the first site.
func (s *site) unsealWith(first *site) {
	s.t.Helper()
	if r := s.unseal(first.cards()...); r.code != 0 {
		s.t.Fatalf("unseal %s: %+v\n%s", s.ops, r, s.log)
	}
}

// empty takes all from a data directory but one file, as on a host that is set up anew.
func (s *site) empty(keeps string) {
	s.t.Helper()
	content, err := os.ReadFile(s.path("data", keeps))
	if err == nil {
		err = os.RemoveAll(s.path("data"))
	}
	if err == nil {
		err = os.Mkdir(s.path("data"), 0o700)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(s.path("data", keeps), content)
}

// serves reports whether a node answers, with its store; of a machine, whether it is open.
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

// TestFaults: three nodes, three crypto machines and three members of etcd, on hosts of
// their own, under load. Every process is killed, paused, cut off, put on a slow line and
// replaced by an empty one, in turn; and each pair of processes is killed or cut off
// together. There is always a node and a machine left: no call fails, no result is wrong,
// and no acknowledged change is lost.
func TestFaults(t *testing.T) {
	t.Parallel()
	if !netlab.Enter(t) {
		return
	}
	c := newCluster(t)
	load := c.load()
	defer load.stop()
	table := []string{"fault | calls | failed | slowest | well again after"}
	run := func(what string, begin, end func(), well func() bool) {
		before := load.snapshot()
		begin()
		time.Sleep(holds)
		over := time.Now()
		end()
		within(t, what+" is well again", well)
		took := time.Since(over)
		after := load.since(before)
		table = append(table, fmt.Sprintf("%s | %d | %d | %v | %v", what, after.calls, after.failed, after.slowest.Round(time.Millisecond), took.Round(time.Millisecond)))
		if after.failed > 0 {
			t.Errorf("%s: %d of %d calls failed: %v", what, after.failed, after.calls, after.last)
		}
		if after.calls == 0 {
			t.Errorf("%s: nothing was called", what)
		}
	}
	for _, p := range c.parts {
		for _, f := range troubles {
			run(p.name+" "+f.name, func() { f.begin(p) }, func() { f.end(p) }, p.well)
		}
	}
	for i, p := range c.parts {
		for j, q := range c.parts[:i] {
			f := troubles[(i+j)%2*2] // killed, cut off
			run(fmt.Sprintf("%s and %s %s", p.name, q.name, f.name),
				func() { f.begin(p); f.begin(q) }, func() { f.end(q); f.end(p) }, func() bool { return p.well() && q.well() })
		}
	}
	load.stop()
	load.check()
	t.Logf("\n%s\n%d calls, %d management operations", strings.Join(table, "\n"), load.snapshot().calls, len(load.history.events))
}
