package migrate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/keystore/etcd"
	"github.com/trikey/trikey/keystore/etcd/etcdtest"
	"github.com/trikey/trikey/keystore/migrate"
)

const last = "root"

func openBolt(t *testing.T) keystore.Store {
	t.Helper()
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func openEtcd(t *testing.T, c etcdtest.Cluster) keystore.Store {
	t.Helper()
	s, err := etcd.Open(t.Context(), etcd.Config{Endpoints: c.Endpoints(), Prefix: "/" + filepath.Base(t.TempDir()) + t.Name() + "/"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func put(t *testing.T, s keystore.Store, writes ...keystore.Write) {
	t.Helper()
	for batch := range keystore.Batches(writes) {
		if _, err := s.Txn(t.Context(), nil, batch); err != nil {
			t.Fatal(err)
		}
	}
}

// fill writes some thousand entries, before and after the marker and the last one in
// order, empty ones and large ones among them.
func fill(t *testing.T, s keystore.Store) {
	t.Helper()
	writes := []keystore.Write{{Name: last, Value: []byte("the root")}, {Name: "large", Value: bytes.Repeat([]byte{1}, keystore.MaxValue)}, {Name: "a\x00\xff"}}
	for i := range 1200 {
		writes = append(writes, keystore.Write{Name: fmt.Sprintf("g1/%05d", i), Value: bytes.Repeat([]byte{byte(i)}, i)},
			keystore.Write{Name: fmt.Sprintf("z/%05d", i), Value: []byte("z")})
	}
	put(t, s, writes...)
}

func content(t *testing.T, s keystore.Store) map[string]string {
	t.Helper()
	list, _, err := s.List(t.Context(), "", "", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range list {
		all[e.Name] = string(e.Value)
	}
	return all
}

func wantSame(t *testing.T, a, b keystore.Store) {
	t.Helper()
	x, y := content(t, a), content(t, b)
	if len(x) != len(y) {
		t.Errorf("%d entries, and %d", len(x), len(y))
	}
	for name, value := range x {
		if other, ok := y[name]; !ok || other != value {
			t.Errorf("%q differs", name)
		}
	}
}

// From a file to etcd, and back.
func TestThereAndBack(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Installed(t)})
	file, cluster, again := openBolt(t), openEtcd(t, c), openBolt(t)
	fill(t, file)
	for _, pair := range [][2]keystore.Store{{file, cluster}, {cluster, again}} {
		shown := 0
		report, err := migrate.Run(t.Context(), migrate.Config{From: pair[0], To: pair[1], Last: last, Progress: func(done, total int) {
			if done < shown || done > total {
				t.Errorf("progress %d after %d, of %d", done, shown, total)
			}
			shown = done
		}})
		if err != nil || report.Entries != 2403 || report.Copied != 2403 || report.Bytes < 1<<20 || shown != 2*2403 {
			t.Fatalf("%+v, %v, progress %d", report, err, shown)
		}
	}
	wantSame(t, file, cluster)
	wantSame(t, file, again)
}

// A copy that is cut short anywhere is no store, and the next run makes it one.
func TestCutShort(t *testing.T) {
	from, to := openBolt(t), openBolt(t)
	fill(t, from)
	copied := 0
	for cut := 1; ; cut++ {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		report, err := migrate.Run(ctx, migrate.Config{From: from, To: to, Last: last, Progress: func(int, int) {
			if calls++; calls == cut {
				cancel()
			}
		}})
		cancel()
		copied += report.Copied
		if err == nil {
			if cut < 8 || copied != 2403 {
				t.Errorf("done after %d cuts, with %d entries copied in all: %+v", cut, copied, report)
			}
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if _, err := to.Get(t.Context(), last); !errors.Is(err, keystore.ErrNotFound) {
			t.Fatalf("cut %d: half a copy has its last entry: %v", cut, err)
		}
		if _, err := migrate.Run(t.Context(), migrate.Config{From: to, To: openBolt(t), Last: last}); !errors.Is(err, fault.Conflict) {
			t.Fatalf("half a copy was copied: %v", err)
		}
		if cut == 2 { // something that does not belong there, and something that was altered
			put(t, to, keystore.Write{Name: "stray"}, keystore.Write{Name: "g1/00007", Value: []byte("altered")})
			copied--
		}
	}
	wantSame(t, from, to)
}

func TestRefused(t *testing.T) {
	from := openBolt(t)
	fill(t, from)
	full := openBolt(t)
	put(t, full, keystore.Write{Name: "x"})
	other := openBolt(t)
	put(t, other, keystore.Write{Name: migrate.Marker, Value: []byte("of another")})
	for what, test := range map[string]struct {
		from, to keystore.Store
		want     fault.Code
	}{
		"a target with entries":           {from, full, fault.Conflict},
		"a target of another copy":        {from, other, fault.Conflict},
		"a source that is a store":        {from, from, fault.Conflict},
		"a source without the last entry": {full, openBolt(t), fault.NotFound},
	} {
		if _, err := migrate.Run(t.Context(), migrate.Config{From: test.from, To: test.to, Last: last}); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What changes at either end while it is copied is noticed, and a second run is right.
func TestChanged(t *testing.T) {
	for what, change := range map[string]func(t *testing.T, from, to keystore.Store){
		"new": func(t *testing.T, from, _ keystore.Store) { put(t, from, keystore.Write{Name: "g1/00000a"}) },
		"replaced": func(t *testing.T, from, _ keystore.Store) {
			put(t, from, keystore.Write{Name: "g1/00001", Value: []byte("x")})
		},
		"deleted": func(t *testing.T, from, _ keystore.Store) {
			put(t, from, keystore.Write{Name: "g1/00001", Delete: true})
		},
		"last": func(t *testing.T, from, _ keystore.Store) {
			put(t, from, keystore.Write{Name: last, Value: []byte("the root")})
		},
		"end": func(t *testing.T, from, _ keystore.Store) { put(t, from, keystore.Write{Name: "zz"}) },
		"target": func(t *testing.T, _, to keystore.Store) {
			put(t, to, keystore.Write{Name: "g1/00001", Value: []byte("x")})
		},
		"stray": func(t *testing.T, _, to keystore.Store) { put(t, to, keystore.Write{Name: "zz"}) },
	} {
		t.Run(what, func(t *testing.T) {
			from, to := openBolt(t), openBolt(t)
			fill(t, from)
			changed := false
			_, err := migrate.Run(t.Context(), migrate.Config{From: from, To: to, Last: last, Progress: func(done, total int) {
				if done >= total/2 && !changed { // all is copied, nothing compared
					changed = true
					change(t, from, to)
				}
			}})
			if !errors.Is(err, fault.Conflict) {
				t.Fatalf("%v", err)
			}
			if _, err := migrate.Run(t.Context(), migrate.Config{From: from, To: to, Last: last}); err != nil {
				t.Fatal(err)
			}
			wantSame(t, from, to)
		})
	}
}
