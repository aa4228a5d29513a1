// Package unixsock is a local socket for the owner of a process, and for nobody else who
// is not named: mode 0600, and the kernel is asked who is at the other end of every
// connection.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Listen listens on a socket at path. It replaces a socket that a dead process
// left behind; the caller makes sure that no living one has it.
func Listen(path string) (net.Listener, error) { return ListenFor(path, nil) }

// ListenFor is Listen for some other users too. They need to be in the group of the
// socket, which has mode 0660 then.
func ListenFor(path string, users []int) (net.Listener, error) {
	mode := os.FileMode(0o600)
	if len(users) > 0 {
		mode = 0o660
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	address, release, err := short(path)
	if err != nil {
		return nil, err
	}
	defer release()
	l, err := net.Listen("unix", address)
	if err != nil {
		return nil, err
	}
	// The address means something else once release has run; the next Listen
	// removes the socket.
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &listener{l, users}, nil
}

// maxAddress is the longest address of a unix socket on Linux.
const maxAddress = 107

// short returns an address for the socket at path, which may be longer than an address
// can be: then by way of the directory's descriptor. release gives that back.
func short(path string) (address string, release func(), err error) {
	if len(path) <= maxAddress {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { _ = dir.Close() }, nil
}

// listener drops connections of other users.
type listener struct {
	net.Listener
	users []int // besides the process's own and root
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if uid, err := peer(c); err == nil && (uid == os.Geteuid() || uid == 0 || slices.Contains(l.users, uid)) {
			return c, nil
		}
		_ = c.Close()
	}
}

// peer returns the user at the other end.
func peer(c net.Conn) (uid int, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var credentials *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		credentials, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return int(credentials.Uid), nil
}

type peerKey struct{}

// ConnContext is that of an http.Server: it has the server's handlers know the user at
// the other end, by PeerUID.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	uid, err := peer(c)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, uid)
}

// PeerUID returns the user who makes the request of a context.
func PeerUID(ctx context.Context) (uid int, ok bool) {
	uid, ok = ctx.Value(peerKey{}).(int)
	return uid, ok
}

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	address, release, err := short(path)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	return d.DialContext(ctx, "unix", address)
}

// Client returns an HTTP client whose every request goes to the socket at path.
func Client(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return Dial(ctx, path) },
		IdleConnTimeout: time.Minute,
	}}
}
