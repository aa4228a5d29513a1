package netlab

import (
	"bytes"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Capture is what goes over the lab's bridge, byte by byte (packet(7)).
type Capture struct {
	lab  *Lab
	fd   int
	stop chan struct{}
	done sync.WaitGroup

	mu   sync.Mutex // guards all below
	seen bytes.Buffer
}

// Capture begins to keep all that hosts send each other.
func (l *Lab) Capture() *Capture {
	l.t.Helper()
	const everything = uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // in network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(everything))
	if err != nil {
		l.t.Fatalf("capture: %v", err)
	}
	// A read that finds nothing ends soon, so that Stop is seen.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		l.t.Fatalf("capture: %v", err)
	}
	c := &Capture{lab: l, fd: fd, stop: make(chan struct{})}
	c.done.Go(c.read)
	return c
}

func (c *Capture) read() {
	packet := make([]byte, 1<<16)
	for {
		select {
		case <-c.stop:
			return
		default:
		}
		n, _, err := unix.Recvfrom(c.fd, packet, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
			continue
		case err != nil:
			c.lab.t.Errorf("capture: %v", err)
			return
		}
		c.mu.Lock()
		c.seen.Write(packet[:n])
		c.mu.Unlock()
	}
}

// Stop ends the capture, and returns all that was seen since it began.
func (c *Capture) Stop() []byte {
	time.Sleep(200 * time.Millisecond) // what is on its way
	close(c.stop)
	c.done.Wait()
	_ = unix.Close(c.fd)
	return c.seen.Bytes()
}
