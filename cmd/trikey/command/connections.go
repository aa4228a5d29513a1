package command

import (
	"net"
	"net/netip"
	"sync"

	"github.com/trikey/trikey/kms/limit"
)

// perAddress is a listener that closes connections of an address that has too many.
// Trusted proxies may have any number: theirs are many callers'.
type perAddress struct {
	net.Listener
	most   func() int // 0: any number
	exempt func(netip.Addr) bool

	mu   sync.Mutex
	open map[netip.Addr]int // guarded by mu; those with one or more
}

func newPerAddress(l net.Listener, most func() int, exempt func(netip.Addr) bool) *perAddress {
	return &perAddress{Listener: l, most: most, exempt: exempt, open: map[netip.Addr]int{}}
}

// Accept returns the next connection that its address may have.
func (l *perAddress) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := c.RemoteAddr().(*net.TCPAddr)
		if !ok {
			return c, nil
		}
		addr := tcp.AddrPort().Addr().Unmap()
		from := limit.Network(addr)
		most := l.most()
		l.mu.Lock()
		refused := most > 0 && l.open[from] >= most && !l.exempt(addr)
		if !refused {
			l.open[from]++
		}
		l.mu.Unlock()
		if refused {
			_ = c.Close()
			continue
		}
		return &countedConn{Conn: c, done: sync.OnceFunc(func() { l.left(from) })}, nil
	}
}

func (l *perAddress) left(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[from]--; l.open[from] <= 0 {
		delete(l.open, from)
	}
}

// countedConn is a connection that counts until it is closed.
type countedConn struct {
	net.Conn
	done func()
}

// Close is that of net.Conn.
func (c *countedConn) Close() error {
	c.done()
	return c.Conn.Close()
}
