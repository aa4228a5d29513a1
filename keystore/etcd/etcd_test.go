package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/etcd"
	"github.com/trikey/trikey/keystore/etcd/etcdtest"
	"github.com/trikey/trikey/keystore/storetest"
)

func open(t testing.TB, cfg etcd.Config) *etcd.Store {
	t.Helper()
	s, err := etcd.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var prefixes atomic.Int64

// fresh is a configuration with a prefix that nobody has used.
func fresh(c etcdtest.Cluster) etcd.Config {
	return etcd.Config{Endpoints: c.Endpoints(), Prefix: fmt.Sprintf("/test/%d/", prefixes.Add(1))}
}

func TestContract(t *testing.T) {
	for name, binary := range map[string]string{"current": etcdtest.Current(t), "installed": etcdtest.Installed(t)} {
		t.Run(name, func(t *testing.T) {
			c := etcdtest.Start(t, etcdtest.Config{Binary: binary})
			storetest.Run(t, func(t *testing.T) keystore.Store { return open(t, fresh(c)) })
		})
	}
}

func put(t testing.TB, s keystore.Store, name, value string) int64 {
	t.Helper()
	revision, err := s.Txn(t.Context(), nil, []keystore.Write{{Name: name, Value: []byte(value)}})
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

// A watch of history that etcd has compacted says so, also where only the deletion at the
// compacted revision itself is lost; a watch from there on has everything.
func TestCompaction(t *testing.T) {
	for name, binary := range map[string]string{"current": etcdtest.Current(t), "installed": etcdtest.Installed(t)} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			c := etcdtest.Start(t, etcdtest.Config{Binary: binary})
			s := open(t, fresh(c))
			first := put(t, s, "a", "1")
			deleted, err := s.Txn(t.Context(), nil, []keystore.Write{{Name: "a", Delete: true}})
			if err != nil {
				t.Fatal(err)
			}
			put(t, s, "b", "2")
			if _, err := c.Client(t).Compact(ctx, deleted); err != nil {
				t.Fatal(err)
			}
			never := func(e []keystore.Event) error { return fmt.Errorf("called with %+v", e) }
			for _, from := range []int64{0, first - 1, first, deleted - 1} {
				if err := s.Watch(ctx, "", from, never); !errors.Is(err, keystore.ErrCompacted) {
					t.Errorf("from %d, compacted at %d: %v", from, deleted, err)
				}
			}
			// etcd was restored from a backup: its revisions begin again below.
			if err := s.Watch(ctx, "", deleted+1000, never); !errors.Is(err, keystore.ErrCompacted) {
				t.Errorf("from a revision that is yet to come: %v", err)
			}
			stop := errors.New("stop")
			err = s.Watch(ctx, "", deleted, func(e []keystore.Event) error {
				if e[0].Name != "b" {
					t.Errorf("%+v", e)
				}
				return stop
			})
			if !errors.Is(err, stop) {
				t.Error(err)
			}
		})
	}
}

// Two stores of one etcd see nothing of each other.
func TestPrefix(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Current(t)})
	a, b := open(t, etcd.Config{Endpoints: c.Endpoints(), Prefix: "/a/"}), open(t, etcd.Config{Endpoints: c.Endpoints(), Prefix: "/a0/"})
	put(t, a, "x", "1")
	put(t, b, "y", "2")
	for s, want := range map[*etcd.Store]string{a: "x", b: "y"} {
		if list, _, err := s.List(t.Context(), "", "", 10); err != nil || len(list) != 1 || list[0].Name != want {
			t.Errorf("%+v, %v", list, err)
		}
	}
	for _, prefix := range []string{"a", "/", "/a", "a/", "/" + strings.Repeat("a", 300) + "/"} {
		if _, err := etcd.Open(t.Context(), etcd.Config{Endpoints: c.Endpoints(), Prefix: prefix}); !errors.Is(err, fault.BadConfig) {
			t.Errorf("prefix %q: %v", prefix, err)
		}
	}
}

// An etcd that takes smaller transactions than a store needs is refused at the start.
func TestSmallTransactions(t *testing.T) {
	for flag, small := range map[string]string{"--max-txn-ops": "100", "--max-request-bytes": "1000000"} {
		c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Current(t), Flags: []string{flag, small}})
		_, err := etcd.Open(t.Context(), fresh(c))
		if !errors.Is(err, fault.BadConfig) || !strings.Contains(err.Error(), flag+"=1") {
			t.Errorf("%v", err)
		}
		if r, err := c.Client(t).Get(t.Context(), "/test/", clientv3.WithPrefix()); err != nil || len(r.Kvs) != 0 {
			t.Errorf("the probe left %v, %v", r.Kvs, err)
		}
	}
}

// With TLS, client certificates, and a user who may use one prefix only.
func TestAccess(t *testing.T) {
	files := etcdtest.NewFiles(t)
	c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Current(t), TLS: files})
	admin := c.Client(t)
	allow := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel) // after the tests that run beside each other
	_, err := admin.UserAdd(ctx, "root", "root")
	allow(err)
	_, err = admin.UserGrantRole(ctx, "root", "root")
	allow(err)
	_, err = admin.UserAdd(ctx, "trikey", "correct horse")
	allow(err)
	_, err = admin.RoleAdd(ctx, "trikey")
	allow(err)
	_, err = admin.RoleGrantPermission(ctx, "trikey", "/trikey/", "/trikey0", clientv3.PermissionType(clientv3.PermReadWrite))
	allow(err)
	_, err = admin.UserGrantRole(ctx, "trikey", "trikey")
	allow(err)
	_, err = admin.AuthEnable(ctx)
	allow(err)
	password := func(p string) *secret.Bytes {
		t.Helper()
		b, err := secret.Move([]byte(p))
		allow(err)
		t.Cleanup(b.Wipe)
		return b
	}
	good := etcd.Config{
		Endpoints: c.Endpoints(), CA: files.CA, Cert: files.Client, Key: files.ClientKey, User: "trikey", Password: password("correct horse"),
	}
	s := open(t, good)
	revision := put(t, s, "a", "1")
	stop := errors.New("stop")
	if err := s.Watch(ctx, "", revision-1, func([]keystore.Event) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	plain := strings.Replace(c.Endpoints()[0], "https", "http", 1)
	for what, test := range map[string]struct {
		change func(*etcd.Config)
		want   fault.Code
	}{
		"wrong password":        {func(c *etcd.Config) { c.Password = password("wrong") }, fault.BadConfig},
		"no such user":          {func(c *etcd.Config) { c.User = "nobody" }, fault.BadConfig},
		"no user":               {func(c *etcd.Config) { c.User, c.Password = "", nil }, fault.BadConfig},
		"another prefix":        {func(c *etcd.Config) { c.Prefix = "/other/" }, fault.BadConfig},
		"no client certificate": {func(c *etcd.Config) { c.Cert, c.Key = "", "" }, fault.Unavailable},
		"another CA":            {func(c *etcd.Config) { c.CA = files.Client }, fault.Unavailable},
		"no CA file":            {func(c *etcd.Config) { c.CA += ".none" }, fault.BadConfig},
		"CA file is a key":      {func(c *etcd.Config) { c.CA = files.ClientKey }, fault.BadConfig},
		"key of another":        {func(c *etcd.Config) { c.Key = files.ServerKey }, fault.BadConfig},
		"plain with TLS files":  {func(c *etcd.Config) { c.Endpoints = []string{plain} }, fault.BadConfig},
		"plain to TLS":          {func(c *etcd.Config) { *c = etcd.Config{Endpoints: []string{plain}} }, fault.Unavailable},
		"mixed":                 {func(c *etcd.Config) { c.Endpoints = append([]string{plain}, c.Endpoints...) }, fault.BadConfig},
		"plain elsewhere":       {func(c *etcd.Config) { *c = etcd.Config{Endpoints: []string{"http://192.0.2.1:2379"}} }, fault.BadConfig},
		"no scheme":             {func(c *etcd.Config) { c.Endpoints = []string{"127.0.0.1:2379"} }, fault.BadConfig},
		"none":                  {func(c *etcd.Config) { c.Endpoints = nil }, fault.BadConfig},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			cfg := good
			cfg.Timeout = time.Second
			test.change(&cfg)
			if s, err := etcd.Open(ctx, cfg); !errors.Is(err, test.want) {
				t.Errorf("%v, want %s", err, test.want)
				if err == nil {
					_ = s.Close()
				}
			}
		})
	}
}
