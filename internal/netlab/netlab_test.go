package netlab_test

import (
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/netlab"
)

// TestMain: on the far host the test's own binary is what listens.
func TestMain(m *testing.M) {
	if addr := os.Getenv("NETLAB_LISTEN"); addr != "" {
		listen(addr)
	}
	os.Exit(m.Run())
}

func listen(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
	}
}

// TestLab: a host answers at its address, not while it is cut off, and again after; a
// slow line is slow.
func TestLab(t *testing.T) {
	if !netlab.Enter(t) {
		return
	}
	lab := netlab.New(t)
	h := lab.Host("far")
	cmd := h.Command(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "NETLAB_LISTEN="+h.Addr+":7000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	answers := func(size int, wait time.Duration) bool {
		c, err := net.DialTimeout("tcp", h.Addr+":7000", wait)
		if err != nil {
			return false
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(wait))
		sent := make(chan bool, 1)
		go func() { _, err := c.Write(make([]byte, size)); sent <- err == nil }()
		_, err = io.ReadFull(c, make([]byte, size))
		return err == nil && <-sent
	}
	soon := func(what string, f func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	soon("the host never answered", func() bool { return answers(1, time.Second) })
	if !answers(1<<20, 10*time.Second) {
		t.Error("a megabyte does not come back")
	}
	h.Cut()
	if answers(1, time.Second) {
		t.Error("a host that is cut off answers")
	}
	h.Mend()
	soon("the host does not answer any more", func() bool { return answers(1, time.Second) })
	h.Slow("256kbit")
	if answers(1<<20, 2*time.Second) {
		t.Error("a megabyte came back in two seconds over a line of 256 kbit/s")
	}
	h.Fast()
	soon("the line stayed slow", func() bool { return answers(1<<20, 5*time.Second) })
}
