package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/trikey/trikey/hsm"
	pb "github.com/trikey/trikey/hsm/remote/machinepb"
	"github.com/trikey/trikey/internal/fault"
)

// ServerConfig is what a server needs.
type ServerConfig struct {
	Machine hsm.Machine

	// InFlight is how many calls of one connection are worked at at a time; more wait
	// unread. 256 when zero.
	InFlight int

	// Done is told, if it is given, of every call when it ends, with how many operations
	// it had.
	Done func(operations int, err error)

	Log *slog.Logger // slog.Default when nil
}

// Server lets services use a machine over the wire. Close ends its goroutines.
type Server struct {
	pb.UnimplementedMachineServer
	cfg      ServerConfig
	draining chan struct{} // closed by Drain

	mu      sync.Mutex // guards all below
	drained bool
	closed  bool
	servers []*grpc.Server

	serving   sync.WaitGroup // calls of Serve
	sessions  sync.WaitGroup // streams that are open
	receiving sync.WaitGroup // goroutines that read them
	connected atomic.Int64
}

// NewServer returns a server that listens nowhere yet.
func NewServer(cfg ServerConfig) *Server {
	if cfg.InFlight == 0 {
		cfg.InFlight = 256
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Server{cfg: cfg, draining: make(chan struct{})}
}

// Serve takes connections until the server is closed or the listener fails. Without a
// TLS configuration the listener itself says who may connect: it is a unix socket's.
func (s *Server) Serve(l net.Listener, config *tls.Config) error {
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()), grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(window), grpc.MaxConcurrentStreams(64), grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}), grpc.WaitForHandlers(true),
	}
	if config != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	server := grpc.NewServer(options...)
	pb.RegisterMachineServer(server, s)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return l.Close()
	}
	s.servers = append(s.servers, server)
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	return server.Serve(l)
}

// Connections is how many services are connected.
func (s *Server) Connections() int { return int(s.connected.Load()) }

// errDraining sends the callers of a machine that is about to end to another one.
var errDraining = fault.New(fault.Unavailable, "the crypto machine is about to end and takes no new calls; try another one")

// Probe tells the machine's state.
func (s *Server) Probe(ctx context.Context, _ *pb.ProbeRequest) (*pb.ProbeAnswer, error) {
	if s.isDraining() {
		return &pb.ProbeAnswer{Fault: faultOf(errDraining)}, nil
	}
	status, err := s.cfg.Machine.Status(ctx)
	if err != nil {
		return &pb.ProbeAnswer{Fault: faultOf(err)}, nil
	}
	return statusOf(status), nil
}

func (s *Server) isDraining() bool {
	select {
	case <-s.draining:
		return true
	default:
		return false
	}
}

// Work carries the calls of one connection.
func (s *Server) Work(stream grpc.BidiStreamingServer[pb.Requests, pb.Answers]) error {
	s.mu.Lock()
	if s.drained || s.closed {
		s.mu.Unlock()
		return toStatus(errDraining)
	}
	s.sessions.Add(1)
	s.mu.Unlock()
	defer s.sessions.Done()
	s.connected.Add(1)
	defer s.connected.Add(-1)
	// The client takes the stream for open when it has its header.
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	return newSession(s, stream).run()
}

// Drain refuses new calls, waits for those under way, and sends the connections away.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	if !s.drained {
		s.drained = true
		close(s.draining)
	}
	s.mu.Unlock()
	idle := make(chan struct{})
	go func() { s.sessions.Wait(); close(idle) }()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close ends every connection at once.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	servers := s.servers
	s.servers = nil
	s.mu.Unlock()
	for _, server := range servers {
		server.Stop()
	}
	s.serving.Wait()
	s.sessions.Wait()
	s.receiving.Wait()
	return nil
}

// handle does what a request asks for.
func (s *Server) handle(ctx context.Context, r *pb.Request) *pb.Answer {
	a := &pb.Answer{Id: r.GetId()}
	var err error
	switch r.GetKind() {
	case pb.Request_DO:
		err = s.do(ctx, r, a)
	case pb.Request_GENERATE_KEY:
		var made hsm.GeneratedKey
		made, err = s.cfg.Machine.GenerateKey(ctx, bindingFrom(r.GetBinding()))
		a.Wrapped, a.Kcv = []byte(made.Wrapped), made.KCV
	case pb.Request_BEGIN_IMPORT, pb.Request_FINISH_IMPORT:
		err = s.importKey(ctx, r, a)
	default:
		err = fault.New(fault.BadRequest, "call: unknown kind %d; the service is of a later release than the machine", r.GetKind())
	}
	if s.cfg.Done != nil {
		s.cfg.Done(len(r.GetOps()), err)
	}
	if err == nil {
		return a
	}
	if fault.CodeOf(err) == fault.Internal && !errors.Is(err, context.Canceled) {
		s.cfg.Log.Error("a call failed", "kind", r.GetKind().String(), "error", err)
	}
	return &pb.Answer{Id: r.GetId(), Fault: faultOf(err)}
}

func (s *Server) do(ctx context.Context, r *pb.Request, a *pb.Answer) error {
	ops := opsFrom(r.GetOps())
	err := s.cfg.Machine.Do(ctx, ops)
	results := make([]pb.Result, len(ops))
	a.Results = make([]*pb.Result, len(ops))
	for i := range ops {
		clear(ops[i].Input) // this process's copy, of plaintexts too
		results[i].Output, results[i].Plain = ops[i].Output, ops[i].Plain
		results[i].Fault = faultOf(ops[i].Err)
		a.Results[i] = &results[i]
	}
	return err
}

func (s *Server) importKey(ctx context.Context, r *pb.Request, a *pb.Answer) error {
	m, ok := s.cfg.Machine.(hsm.Importer)
	if !ok {
		return fault.New(fault.AlgorithmNotAllowed, "import: this machine takes no keys in; only the host engine does")
	}
	if r.GetKind() == pb.Request_BEGIN_IMPORT {
		made, err := m.BeginImport(ctx)
		a.ImportId, a.PublicKey, a.Expires = made.ID[:], made.Public, made.Expires.Unix()
		return err
	}
	made, err := m.FinishImport(ctx, idFrom(r.GetImportId()), r.GetBlob(), bindingFrom(r.GetBinding()))
	a.Wrapped, a.Kcv = []byte(made.Wrapped), made.KCV
	return err
}
