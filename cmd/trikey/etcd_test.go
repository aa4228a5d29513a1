package main_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/keystore/etcd/etcdtest"
)

// configure changes the site's configuration.
func (s *site) configure(change func(*config.Config)) {
	s.t.Helper()
	cfg, err := config.Load(s.path("trikey.yaml"), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	change(cfg)
	if err := cfg.Save(s.path("trikey.yaml")); err != nil {
		s.t.Fatal(err)
	}
}

// storeIn has the site keep its records in etcd.
func (s *site) storeIn(c etcdtest.Cluster, files *etcdtest.Files) {
	s.t.Helper()
	s.configure(func(cfg *config.Config) {
		cfg.Store = config.Store{Kind: config.StoreEtcd, Endpoints: c.Endpoints(), CA: files.CA, Cert: files.Client, Key: files.ClientKey}
	})
}

// join makes a second node: a machine of its own with its own chip, which the cards of the
// first open, because it has the first one's record; and its destruction keys.
func (s *site) join() *site {
	s.t.Helper()
	b := newSite(s.t)
	for _, name := range []string{"machine.json", "epochs"} {
		content, err := os.ReadFile(s.path("data", name))
		if err != nil {
			s.t.Fatal(err)
		}
		s.write(b.path("data", name), content)
	}
	first, err := config.Load(s.path("trikey.yaml"), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	b.configure(func(cfg *config.Config) { cfg.Machine.Cards, cfg.Store = first.Machine.Cards, first.Store })
	return b
}

// cards are the PIN files of a site's cards, for another one too.
func (s *site) cards() []string {
	return []string{s.path("pins", "1"), s.path("pins", "2"), s.path("pins", "3")}
}

// within waits for what must come about, and returns how long it took.
func within(t *testing.T, what string, f func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !f() {
		if time.Since(start) > 30*time.Second {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(start)
}

// get reads a page of the ops listener.
func (s *site) get(path string) (int, string) {
	s.t.Helper()
	r, err := http.Get(s.ops + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

// degraded reports whether the site says, in both places, that its store is away.
func (s *site) degraded() bool {
	s.t.Helper()
	status, ready := s.get("/readyz")
	_, metrics := s.get("/metrics")
	if status != 200 {
		s.t.Errorf("/readyz is %d: %s", status, ready)
	}
	return strings.Contains(ready, `"degraded"`) && strings.Contains(metrics, "\ntrikey_store_up 0\n")
}

// use takes over the app of another site.
func (s *site) use(other *site) { s.key, s.secret = other.key, other.secret }

func (s *site) decrypts(ciphertext, want string) bool {
	s.t.Helper()
	a := s.post("/v1/reencrypt", object{"ciphertext": ciphertext})
	if a.status != 200 {
		return false
	}
	a = s.post("/v1/batch/decrypt", object{"items": []object{{"ciphertext": a.text("ciphertext")}}})
	return a.status == 200 && strings.Contains(string(a.raw), `"plaintext":"`+want+`"`)
}

// TestEtcd: two nodes over three members of etcd. Members die, one, two and all; the nodes
// go on with what they know, refuse changes, and say so; nothing that was acknowledged is
// lost.
func TestEtcd(t *testing.T) {
	t.Parallel()
	files := etcdtest.NewFiles(t)
	c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Installed(t), Members: 3, TLS: files})
	a := newSite(t)
	a.storeIn(c, files)
	a.open()
	b := a.join()
	a.ok("key", "create", "--index", "1", "--name", "first")
	b.start()
	if r := b.unseal(a.cards()...); r.code != 0 {
		t.Fatalf("the second node: %+v\n%s", r, b.log)
	}
	if r := b.run("key", "show", "first"); r.code != 0 {
		t.Fatalf("the second node has not what the store has: %+v", r)
	}
	// Each sees the other's changes.
	a.createApp("im", "127.0.0.1/32", "keys=1-99;ops=encrypt,decrypt,reencrypt-from,reencrypt-to")
	b.use(a)
	var ciphertext string
	took := within(t, "the second node knows the app", func() bool {
		sealed := b.post("/v1/keys/1/encrypt", object{"plaintext": []byte("hello")})
		ciphertext = sealed.text("ciphertext")
		return sealed.status == 200
	})
	b.ok("key", "create", "--index", "2", "--name", "second")
	took = max(took, within(t, "the first node knows the key", func() bool { return a.post("/v1/keys/2/encrypt", object{"plaintext": []byte("x")}).status == 200 }))
	t.Logf("a change is seen by the other node within %v", took)
	const hello = "aGVsbG8="
	serving := func(when string) {
		t.Helper()
		for _, s := range []*site{a, b} {
			if !s.decrypts(ciphertext, hello) {
				t.Errorf("%s: calls are not answered", when)
			}
		}
	}
	serving("before")
	// Rotations by both at once.
	var wg sync.WaitGroup
	for _, s := range []*site{a, b} {
		wg.Go(func() {
			for range 5 {
				s.ok("key", "rotate", "1")
			}
		})
	}
	wg.Wait()
	versions := func(s *site) (all []string) {
		var key struct{ Versions []struct{ Wrapped string } }
		s.ok("key", "show", "1", "-o", "json").json(t, &key)
		for _, v := range key.Versions {
			all = append(all, v.Wrapped)
		}
		return all
	}
	within(t, "both have the same eleven versions", func() bool {
		return len(versions(a)) == 11 && slices.Equal(versions(a), versions(b))
	})

	c[0].Kill()
	serving("without one member")
	within(t, "a change without one member", func() bool { return a.run("key", "create", "--index", "3", "--name", "third").code == 0 })
	within(t, "the other node has it", func() bool { return b.run("key", "show", "3").code == 0 })

	c[1].Kill()
	within(t, "both say that the store is away", func() bool { return a.degraded() && b.degraded() })
	serving("without a quorum")
	for _, s := range []*site{a, b} {
		if r := s.run("key", "create", "--index", "4"); r.code != 3 || !strings.Contains(r.err, "etcd does not answer") {
			t.Errorf("a change without a quorum: %+v", r)
		}
	}
	// A node that starts now cannot; one that is unsealed now serves when it can.
	b.kill()
	if r := b.run("serve"); r.code != 3 || !strings.Contains(r.err, "etcd does not answer") {
		t.Errorf("started without a store: %+v", r)
	}
	c[0].Start()
	c.Wait()
	b.start()
	c[0].Kill()
	within(t, "the first node notices", func() bool { return a.degraded() })
	if r := b.unseal(a.cards()...); r.code != 3 {
		t.Errorf("unsealed without a store: %+v", r)
	}
	for _, m := range c[:2] {
		m.Start()
	}
	within(t, "the second node serves by itself", func() bool { _, ready := b.ready(); return ready == 200 })
	within(t, "all is well", func() bool { return !a.degraded() && !b.degraded() })
	serving("afterwards")
	b.ok("key", "rotate", "2")
	within(t, "the first node follows", func() bool { return strings.Contains(a.ok("key", "show", "2", "-o", "json").out, `"version": 2`) })
	a.ok("app", "disable", "im")
	within(t, "the app is refused at the other node", func() bool { return b.post("/v1/keys/1/encrypt", object{"plaintext": []byte("x")}).status == 401 })
	a.kill() // its log is whole only now
	for _, told := range []string{"calls are served from memory", "the key store answers again"} {
		if !strings.Contains(a.log.String(), told) {
			t.Errorf("the log does not tell %q:\n%s", told, a.log)
		}
	}
}

// TestEtcdCompacted: a node that slept while the history it needs was compacted reads
// everything anew.
func TestEtcdCompacted(t *testing.T) {
	t.Parallel()
	files := etcdtest.NewFiles(t)
	c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Installed(t), TLS: files})
	a := newSite(t)
	a.storeIn(c, files)
	a.open()
	b := a.join()
	a.createApp("im", "127.0.0.1/32", "keys=1-99;ops=encrypt")
	b.start()
	if r := b.unseal(a.cards()...); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if err := b.serve.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c[0].Kill() // and with it what was on its way to the sleeper
	c[0].Start()
	c.Wait()
	within(t, "a change", func() bool { return a.run("key", "create", "--index", "5", "--name", "five").code == 0 })
	a.ok("key", "rotate", "5")
	a.ok("app", "disable", "im")
	client := c.Client(t)
	r, err := client.Get(t.Context(), "ready")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(t.Context(), r.Header.Revision); err != nil {
		t.Fatal(err)
	}
	if err := b.serve.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	b.use(a)
	// Management reads the store itself; this asks what the node knows.
	within(t, "the sleeper refuses the disabled app", func() bool {
		return b.post("/v1/keys/5/encrypt", object{"plaintext": []byte("x")}).status == 401
	})
	if k := b.keyJSON("show", "5"); k.Version != 2 {
		t.Errorf("the sleeper has version %d", k.Version)
	}
	b.kill()
	if !strings.Contains(b.log.String(), "reading every record anew") {
		t.Errorf("it was not the compaction:\n%s", b.log)
	}
}

// TestStoreMigrate takes a node's store to etcd, serves from there, and takes it back.
func TestStoreMigrate(t *testing.T) {
	t.Parallel()
	files := etcdtest.NewFiles(t)
	c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Current(t), TLS: files})
	s := newSite(t)
	file, cluster := "bolt:"+s.path("data", "store.db"), "etcd:"+c[0].Endpoint+"/chat"
	migrate := func(from, to string) result {
		return run(t, nil, nil, "store", "migrate", "--from", from, "--to", to, "--ca", files.CA, "--cert", files.Client, "--key", files.ClientKey, "-o", "json")
	}
	s.open()
	s.ok("key", "create", "--index", "1", "--name", "first")
	s.createApp("im", "127.0.0.1/32", "keys=1-99;ops=encrypt,decrypt,reencrypt-from,reencrypt-to")
	old := s.encrypt("1", []byte("hello"), nil)
	if r := migrate(file, cluster); r.code != 3 || !strings.Contains(r.err, "in use by another process") {
		t.Errorf("a store in use: %+v", r)
	}
	s.kill()
	for _, test := range []struct {
		from, to string
		code     int
	}{
		{"bolt:" + s.path("none.db"), cluster, 5},
		{cluster, "bolt:" + s.path("none.db"), 5},
		{file, file, 2},
		{file, "redis:x", 2},
		{"store.db", cluster, 2},
		{file, "etcd:http://192.0.2.1:2379", 2},
	} {
		if r := migrate(test.from, test.to); r.code != test.code {
			t.Errorf("%s to %s: %+v, want exit code %d", test.from, test.to, r, test.code)
		}
	}
	var report struct{ Entries, Bytes, Copied int }
	migrate(file, cluster).json(t, &report)
	if report.Entries < 5 || report.Copied != report.Entries || report.Bytes == 0 {
		t.Errorf("%+v", report)
	}
	if r := migrate(file, cluster); r.code == 0 || !strings.Contains(r.err, "not empty") {
		t.Errorf("written over: %+v", r)
	}
	s.storeIn(c, files)
	s.configure(func(cfg *config.Config) { cfg.Store.Prefix = "/chat/" })
	if err := os.Rename(s.path("data", "store.db"), s.path("before.db")); err != nil {
		t.Fatal(err)
	}
	s.open()
	if !s.decrypts(old, "aGVsbG8=") {
		t.Error("a ciphertext of before does not open")
	}
	s.ok("key", "create", "--index", "2", "--name", "second")
	if matches, _ := filepath.Glob(s.path("data", "*.db")); len(matches) > 0 {
		t.Errorf("there is a store in the data directory: %v", matches)
	}
	s.kill()
	migrate(cluster, file).json(t, &report)
	s.configure(func(cfg *config.Config) { cfg.Store = config.Store{Kind: config.StoreBolt} })
	s.open()
	if !s.decrypts(old, "aGVsbG8=") {
		t.Error("a ciphertext of before does not open after the way back")
	}
	if r := s.run("key", "show", "second"); r.code != 0 {
		t.Errorf("what was made in etcd: %+v", r)
	}
}
