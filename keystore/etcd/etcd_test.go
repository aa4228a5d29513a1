package etcd_test

import (
	"fmt"
	"sync/atomic"
	"testing"

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
			c := etcdtest.Start(t, binary, 1)
			storetest.Run(t, func(t *testing.T) keystore.Store { return open(t, fresh(c)) })
		})
	}
}
