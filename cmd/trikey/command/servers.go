package command

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/trikey/trikey/api"
	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/unixsock"
)

// servers are the listeners of a process.
type servers struct {
	all    []*http.Server
	rpc    *api.GRPC // nil when there is none
	starts []func() error
	failed error

	drain func(context.Context) error // what comes before the end; nil: nothing
}

func (s *servers) fail(name string, err error) {
	s.failed = errors.Join(s.failed, fault.Wrap(fault.Unavailable, err, "cannot listen for the %s", name))
}

func (s *servers) add(name string, l net.Listener, err error, h http.Handler, tlsConfig *tls.Config) {
	if err != nil {
		s.fail(name, err)
		return
	}
	server := &http.Server{
		Handler: h, TLSConfig: tlsConfig,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: 2 * time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10,
		ErrorLog:       slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug), // handshakes of scanners, mostly
	}
	s.all = append(s.all, server)
	s.starts = append(s.starts, func() error {
		if tlsConfig != nil {
			return server.ServeTLS(l, "", "")
		}
		return server.Serve(l)
	})
}

// tls is a listener over TLS; through says what its connections go through first.
func (s *servers) tls(name, addr string, cfg *tls.Config, h http.Handler, through ...func(net.Listener) net.Listener) {
	l, err := net.Listen("tcp", addr)
	for _, f := range through {
		if err == nil {
			l = f(l)
		}
	}
	s.add(name, l, err, h, cfg)
}

// custodians is a listener that anybody who reaches it may knock at: its clients are of
// this release or later, and send a few kilobytes.
func (s *servers) custodians(addr string, c *certificate, h http.Handler) {
	config := c.config()
	config.MinVersion = tls.VersionTLS13
	before := len(s.all)
	s.tls("custodians", addr, config, h)
	for _, server := range s.all[before:] {
		server.ReadTimeout, server.IdleTimeout, server.MaxHeaderBytes = 15*time.Second, 30*time.Second, 8<<10
	}
}

// grpc is the data plane over gRPC, if there shall be one.
func (s *servers) grpc(cfg *config.Config, c *certificate, data api.Config, through func(net.Listener) net.Listener) error {
	if cfg.GRPC.Listen == "" {
		return nil
	}
	clients, err := withClients(c.config(), cfg.API.ClientCA)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", cfg.GRPC.Listen)
	if err != nil {
		s.fail("grpc", err)
		return nil
	}
	l, s.rpc = through(l), api.NewGRPC(data, clients)
	s.starts = append(s.starts, func() error { return s.rpc.Serve(l) })
	return nil
}

func (s *servers) plain(name, addr string, h http.Handler) {
	l, err := net.Listen("tcp", addr)
	s.add(name, l, err, h, nil)
}

func (s *servers) unix(name, path string, h http.Handler) {
	l, err := unixsock.Listen(path)
	s.add(name+" socket", l, err, h, nil)
	if n := len(s.all); err == nil && n > 0 {
		s.all[n-1].WriteTimeout = 0 // people take their time
		s.all[n-1].ConnContext = unixsock.ConnContext
	}
}

// shutdownTime is how long calls under way may take to end.
const shutdownTime = 15 * time.Second

// run serves until ctx ends or a listener fails.
func (s *servers) run(ctx context.Context, r *reloader) error {
	failed := make(chan error, len(s.starts))
	for _, start := range s.starts {
		go func() { failed <- start() }()
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	reloading, stop := context.WithCancel(ctx)
	var reloader sync.WaitGroup
	reloader.Go(func() { r.run(reloading, hangup) })
	defer reloader.Wait()
	defer stop()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		slog.Info("ending, after the calls under way")
		return s.shutdown()
	}
}

// endRPC ends gRPC, beside the other listeners: a client that goes on holds nobody else up.
func (s *servers) endRPC(ctx context.Context) error {
	if s.rpc == nil {
		return nil
	}
	return s.rpc.Shutdown(ctx)
}

func (s *servers) shutdown() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	var failed error
	rpc := make(chan error, 1)
	go func() { rpc <- s.endRPC(ctx) }()
	defer func() { err = errors.Join(err, <-rpc) }()
	if s.drain != nil {
		failed = s.drain(ctx)
	}
	for _, server := range s.all {
		failed = errors.Join(failed, server.Shutdown(ctx))
	}
	return failed
}

func (s *servers) close() {
	if s.rpc != nil {
		_ = s.rpc.Close()
	}
	for _, server := range s.all {
		_ = server.Close()
	}
}
