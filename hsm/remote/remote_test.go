package remote_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/hsm/remote"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/testca"
	"github.com/trikey/trikey/internal/unixsock"
)

// serve serves a machine until the test ends.
func serve(t testing.TB, cfg remote.ServerConfig, l net.Listener, config *tls.Config) *remote.Server {
	t.Helper()
	s := remote.NewServer(cfg)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l, config) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), <-served); err != nil {
			t.Error(err)
		}
	})
	return s
}

func dial(t testing.TB, cfg remote.Config) *remote.Machine {
	t.Helper()
	m, err := remote.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// overUnix returns the machine as it is used over a unix socket.
func overUnix(t testing.TB, cfg remote.ServerConfig) (*remote.Machine, *remote.Server) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "machine")
	l, err := unixsock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, cfg, l, nil)
	return dial(t, remote.Config{Address: "unix://" + path}), s
}

type ends struct{ machine, service *tls.Config }

func certificates(t testing.TB) ends {
	t.Helper()
	a, err := testca.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	machine, err := a.TLS("machine")
	if err != nil {
		t.Fatal(err)
	}
	service, err := a.TLS("service")
	if err != nil {
		t.Fatal(err)
	}
	return ends{remote.Mutual(machine, a.Pool(), []string{"service"}), service}
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// overTLS returns the machine as it is used over mutual TLS.
func overTLS(t testing.TB, cfg remote.ServerConfig) *remote.Machine {
	t.Helper()
	l, c := listen(t), certificates(t)
	serve(t, cfg, l, c.machine)
	return dial(t, remote.Config{Address: l.Addr().String(), TLS: c.service})
}

func TestContract(t *testing.T) {
	t.Run("unix", func(t *testing.T) {
		hsmtest.Run(t, func(t *testing.T) hsm.Machine {
			m, _ := overUnix(t, remote.ServerConfig{Machine: hsmtest.Open(t)})
			return m
		})
	})
	t.Run("mutual TLS", func(t *testing.T) {
		hsmtest.Run(t, func(t *testing.T) hsm.Machine { return overTLS(t, remote.ServerConfig{Machine: hsmtest.Open(t)}) })
	})
}

// A machine that is sealed says so over the wire, and is found open again without a new
// connection.
func TestSealed(t *testing.T) {
	e := hsmtest.Open(t)
	m, _ := overUnix(t, remote.ServerConfig{Machine: e})
	if err := e.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.GenerateKey(t.Context(), hsm.Binding{}); !errors.Is(err, fault.Sealed) {
		t.Errorf("a sealed machine: %v", err)
	}
	if s, err := m.Status(t.Context()); err != nil || s.State != hsm.Closed {
		t.Errorf("%+v, %v", s, err)
	}
	if err := e.Open(t.Context(), hsmtest.NewRoot(t)); err != nil {
		t.Fatal(err)
	}
	if s, err := m.Status(t.Context()); err != nil || s.State != hsm.Open || s.RootID == (hsm.ID{}) {
		t.Errorf("%+v, %v", s, err)
	}
}

// gate is a machine whose operations wait.
type gate struct {
	hsm.Machine
	entered   chan struct{} // a value for each that has come
	leave     chan struct{} // closed to let them go
	cancelled atomic.Int64
}

func newGate(m hsm.Machine) *gate {
	return &gate{Machine: m, entered: make(chan struct{}, 1000), leave: make(chan struct{})}
}

// Do holds up operations on one byte.
func (g *gate) Do(ctx context.Context, ops []hsm.Op) error {
	if len(ops) > 0 && ops[0].Size == 1 {
		g.entered <- struct{}{}
		select {
		case <-g.leave:
		case <-ctx.Done():
			g.cancelled.Add(1)
			return ctx.Err()
		}
	}
	return g.Machine.Do(ctx, ops)
}

func random(ctx context.Context, m hsm.Machine, size int) error {
	ops := []hsm.Op{{Kind: hsm.Random, Size: size}}
	if err := m.Do(ctx, ops); err != nil {
		return err
	}
	if ops[0].Err == nil && len(ops[0].Output) != size {
		return errors.New("no result")
	}
	return ops[0].Err
}

// Calls are answered when they are done: one that takes long holds up none that came
// after it.
func TestOutOfOrder(t *testing.T) {
	g := newGate(hsmtest.Open(t))
	m, _ := overUnix(t, remote.ServerConfig{Machine: g})
	slow := make(chan error, 1)
	go func() { slow <- random(t.Context(), m, 1) }()
	<-g.entered
	for range 10 {
		if err := random(t.Context(), m, 2); err != nil {
			t.Fatal(err)
		}
	}
	close(g.leave)
	if err := <-slow; err != nil {
		t.Error(err)
	}
}

// A caller that gives up has its call cancelled at the machine.
func TestCancel(t *testing.T) {
	g := newGate(hsmtest.Open(t))
	m, _ := overUnix(t, remote.ServerConfig{Machine: g})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { failed <- random(ctx, m, 1) }()
	<-g.entered
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); g.cancelled.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the machine still works at a call whose caller has given up")
		}
	}
	if err := random(t.Context(), m, 2); err != nil {
		t.Errorf("after a cancelled call: %v", err)
	}
}

// A machine works at so many calls and reads no more until one ends.
func TestBackPressure(t *testing.T) {
	g := newGate(hsmtest.Open(t))
	m, _ := overUnix(t, remote.ServerConfig{Machine: g, InFlight: 4})
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if err := random(t.Context(), m, 1); err != nil {
				t.Error(err)
			}
		})
	}
	for range 4 {
		<-g.entered
	}
	// A probe is answered all the same.
	if _, err := m.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if n := len(g.entered); n > 0 {
		t.Errorf("%d calls more than may be are worked at", n)
	}
	close(g.leave)
	wg.Wait()
}

// A machine that drains answers what it has taken, refuses what comes, and a service
// reaches its successor at the same address.
func TestDrain(t *testing.T) {
	e := hsmtest.Open(t)
	g := newGate(e)
	path := filepath.Join(t.TempDir(), "machine")
	l, err := unixsock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, remote.ServerConfig{Machine: g}, l, nil)
	m := dial(t, remote.Config{Address: "unix://" + path})
	slow := make(chan error, 1)
	go func() { slow <- random(t.Context(), m, 1) }()
	<-g.entered
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(t.Context()) }()
	for deadline := time.Now().Add(10 * time.Second); random(t.Context(), m, 2) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a draining machine takes calls")
		}
	}
	if err := random(t.Context(), m, 2); !errors.Is(err, fault.Unavailable) {
		t.Errorf("a call to a draining machine: %v", err)
	}
	if _, err := m.Status(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("the state of a draining machine: %v", err)
	}
	close(g.leave)
	if err := errors.Join(<-slow, <-drained, s.Close()); err != nil {
		t.Fatal(err)
	}
	again, err := unixsock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, remote.ServerConfig{Machine: e}, again, nil)
	for deadline := time.Now().Add(10 * time.Second); random(t.Context(), m, 2) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the service does not come back to the machine")
		}
	}
}

// Only services that are named, with certificates of the right authority, are let in; and
// a service takes no machine of another authority.
func TestCertificates(t *testing.T) {
	l, c, others := listen(t), certificates(t), certificates(t)
	serve(t, remote.ServerConfig{Machine: hsmtest.Open(t)}, l, c.machine)
	unnamed := c.machine.Clone()
	unnamed.RootCAs = c.service.RootCAs
	stranger := others.service.Clone()
	stranger.RootCAs = c.service.RootCAs
	misled := c.service.Clone()
	misled.RootCAs = others.service.RootCAs
	for name, config := range map[string]*tls.Config{"not in the list": unnamed, "of another authority": stranger, "trusts another authority": misled} {
		m := dial(t, remote.Config{Address: l.Addr().String(), TLS: config})
		if err := random(t.Context(), m, 2); !errors.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := random(t.Context(), dial(t, remote.Config{Address: l.Addr().String(), TLS: c.service}), 2); err != nil {
		t.Errorf("the service: %v", err)
	}
	if _, err := remote.Dial(remote.Config{Address: l.Addr().String()}); !errors.Is(err, fault.BadConfig) {
		t.Errorf("without a certificate: %v", err)
	}
}

// A key that is wrapped for another region is refused over the wire as it is here.
func TestOtherRegion(t *testing.T) {
	m, _ := overUnix(t, remote.ServerConfig{Machine: hsmtest.Open(t)})
	made, err := m.GenerateKey(t.Context(), hsm.Binding{Index: 7, Version: 1, Algorithm: alg.AES256GCM, Purpose: hsm.PurposeSeal})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := strings.Replace(string(made.Wrapped), hsmtest.Region, strings.ToUpper(hsmtest.Region), 1)
	ops := []hsm.Op{{Kind: hsm.Encrypt, Key: hsm.WrappedKey(elsewhere), Input: []byte("x")}}
	if err := m.Do(t.Context(), ops); err != nil || !errors.Is(ops[0].Err, fault.WrongRegion) {
		t.Errorf("%v, %v", err, ops[0].Err)
	}
}
