package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/etcd"
	"github.com/trikey/trikey/keystore/etcd/etcdtest"
)

// cluster is three members, a store over them, and a watch that must see every
// acknowledged write once, whatever happens.
type cluster struct {
	t       *testing.T
	members etcdtest.Cluster
	store   *etcd.Store
	ctx     context.Context
	written int // put acknowledges
}

func newCluster(t *testing.T) *cluster {
	members := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Installed(t), Members: 3})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return &cluster{t: t, members: members, ctx: ctx, store: open(t, etcd.Config{Endpoints: members.Endpoints(), Timeout: time.Second})}
}

// put writes the next number, and tries again while the store is unavailable. A write that
// ended so may be there: then the comparison does not hold.
func (c *cluster) put() {
	c.t.Helper()
	name := fmt.Sprintf("n/%04d", c.written+1)
	for {
		_, err := c.store.Txn(c.ctx, []keystore.Compare{{Name: name}}, []keystore.Write{{Name: name}})
		if err == nil || errors.Is(err, keystore.ErrConflict) {
			c.written++
			return
		}
		if !errors.Is(err, keystore.ErrUnavailable) || !errors.Is(err, fault.Unavailable) {
			c.t.Fatalf("write %d: %v", c.written+1, err)
		}
	}
}

// refuses makes sure that nothing can be read or written: each call says so in time, and
// what it says may be tried again.
func (c *cluster) refuses() {
	c.t.Helper()
	// Until the members that are left notice, a read may still be answered.
	for ; ; time.Sleep(10 * time.Millisecond) {
		if _, err := c.store.Get(c.ctx, "n/0001"); errors.Is(err, keystore.ErrUnavailable) {
			break
		} else if err != nil {
			c.t.Fatal(err)
		}
	}
	_, errGet := c.store.Get(c.ctx, "n/0001")
	_, _, errList := c.store.List(c.ctx, "", "", 10)
	_, errTxn := c.store.Txn(c.ctx, nil, []keystore.Write{{Name: "refused"}})
	_, errCheck := c.store.Txn(c.ctx, []keystore.Compare{{Name: "none"}}, nil)
	for _, err := range []error{errGet, errList, errTxn, errCheck} {
		if !errors.Is(err, keystore.ErrUnavailable) || !errors.Is(err, fault.Unavailable) {
			c.t.Errorf("without a quorum: %v", err)
		}
	}
}

// follow watches, and watches again from the last revision when the store is unavailable,
// until it has seen the number given. Every number must come once and in order.
func (c *cluster) follow(total int) error {
	var from int64
	seen := 0
	enough := errors.New("enough")
	for {
		err := c.store.Watch(c.ctx, "n/", from, func(events []keystore.Event) error {
			for _, e := range events {
				if seen++; e.Name != fmt.Sprintf("n/%04d", seen) {
					return fmt.Errorf("event %d is of %s", seen, e.Name)
				}
				from = e.Revision
			}
			if seen == total {
				return enough
			}
			return nil
		})
		switch {
		case errors.Is(err, enough):
			return nil
		case !errors.Is(err, keystore.ErrUnavailable):
			return err
		}
	}
}

func TestCluster(t *testing.T) {
	c := newCluster(t)
	const each = 20
	followed := make(chan error, 1)
	go func() { followed <- c.follow(6 * each) }()
	puts := func() {
		for range each {
			c.put()
		}
	}
	puts()
	// One of three is lost: nothing else is.
	c.members[0].Kill()
	puts()
	// Two: no quorum.
	c.members[1].Kill()
	c.refuses()
	c.members[0].Start()
	puts()
	// One hangs, while another is away: no quorum, and the connection stays open.
	c.members[2].Signal(syscall.SIGSTOP)
	c.refuses()
	c.members[2].Signal(syscall.SIGCONT)
	puts()
	// All at once, and back: as after a power failure.
	c.members[1].Start()
	c.members.Wait()
	puts()
	for _, m := range c.members {
		m.Kill()
	}
	c.refuses()
	for _, m := range c.members {
		m.Start()
	}
	puts()
	if err := <-followed; err != nil {
		t.Errorf("the watch: %v", err)
	}
	list, _, err := c.store.List(c.ctx, "n/", "", 1000)
	if err != nil || len(list) != c.written {
		t.Errorf("%d entries of %d acknowledged writes, %v", len(list), c.written, err)
	}
}

// Nobody is there at the start: an error, in time, that may be tried again.
func TestUnreachable(t *testing.T) {
	m := etcdtest.Start(t, etcdtest.Config{Binary: etcdtest.Installed(t)})
	m[0].Kill()
	if _, err := etcd.Open(t.Context(), etcd.Config{Endpoints: m.Endpoints(), Timeout: 200 * time.Millisecond}); !errors.Is(err, keystore.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}
