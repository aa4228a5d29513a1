package api

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	grpctls "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/experimental"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/reflection"

	v1 "github.com/trikey/trikey/api/v1"
	pb "github.com/trikey/trikey/api/v1/cryptopb"
)

// Limits of gRPC connections.
const (
	maxMetadata   = 64 << 10         // bytes, as the headers of HTTP
	maxStreams    = 256              // calls at a time of one connection
	streamWindow  = 1 << 20          // bytes of a call that wait to be read (RFC 9113 section 5.2)
	connWindow    = 4 << 20          // the same of all calls of a connection
	connIdle      = 15 * time.Minute // without a call
	connAge       = time.Hour        // then its client is asked to connect anew
	pingEvery     = time.Minute      // when nothing else comes
	pingAnswer    = 20 * time.Second
	pingTooOften  = 5 * time.Second // clients that ping more often are disconnected
	handshakeTime = 10 * time.Second
	messageTime   = time.Minute // for the message of a unary call
)

// GRPC is the data plane over gRPC: trikey.v1.Crypto, grpc.health.v1.Health and server
// reflection.
type GRPC struct {
	server  *grpc.Server
	crypto  *grpcServer
	ending  chan struct{} // closed when streams shall end
	end     sync.Once
	running sync.WaitGroup // all goroutines of streams, and the one of health
}

// grpcServer serves trikey.v1.Crypto.
type grpcServer struct {
	*server
	ending  <-chan struct{}
	running *sync.WaitGroup
}

// NewGRPC returns the data plane over gRPC.
func NewGRPC(cfg Config, config *tls.Config) *GRPC {
	g := &GRPC{ending: make(chan struct{})}
	g.crypto = &grpcServer{server: &server{cfg}, ending: g.ending, running: &g.running}
	g.server = grpc.NewServer(
		grpc.Creds(grpctls.NewTLS(config)), grpc.ConnectionTimeout(handshakeTime),
		grpc.ForceServerCodecV2(grpcCodec{encoding.GetCodecV2(proto.Name)}), experimental.BufferPool(wipingPool{mem.DefaultBufferPool()}),
		grpc.MaxRecvMsgSize(v1.MaxBody), grpc.MaxHeaderListSize(maxMetadata), grpc.MaxConcurrentStreams(maxStreams),
		grpc.InitialWindowSize(streamWindow), grpc.InitialConnWindowSize(connWindow),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: connIdle, MaxConnectionAge: connAge, Time: pingEvery, Timeout: pingAnswer}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingTooOften, PermitWithoutStream: true}),
	)
	g.server.RegisterService(&grpc.ServiceDesc{
		ServiceName: pb.Crypto_ServiceDesc.ServiceName, Metadata: pb.Crypto_ServiceDesc.Metadata, HandlerType: (*any)(nil), Streams: grpcMethods(),
	}, g.crypto)
	health := &grpcHealth{crypto: g.crypto}
	healthpb.RegisterHealthServer(g.server, health)
	g.running.Go(health.run)
	reflection.Register(g.server)
	return g
}

// Serve answers calls until Shutdown or Close.
func (g *GRPC) Serve(l net.Listener) error { return g.server.Serve(l) }

// Shutdown takes no more calls, and waits for those under way: streams answer what they
// have read, and end with UNAVAILABLE. When ctx ends before that, what is left is
// broken off.
func (g *GRPC) Shutdown(ctx context.Context) error {
	g.end.Do(func() { close(g.ending) })
	done := make(chan struct{})
	go func() {
		g.server.GracefulStop()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
		g.server.Stop() // ends GracefulStop too
		<-done
	}
	g.running.Wait()
	return err
}

// Close breaks off all calls.
func (g *GRPC) Close() error {
	g.end.Do(func() { close(g.ending) })
	g.server.Stop()
	g.running.Wait()
	return nil
}
