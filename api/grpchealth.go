package api

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	pb "github.com/trikey/trikey/api/v1/cryptopb"
)

// healthEvery is how often health is looked at.
const healthEvery = time.Second

// grpcHealth serves grpc.health.v1 (GRPC Health Checking Protocol): serving exactly when
// /readyz says so, at most a second late. It asks nobody who they are, and so costs
// nothing to ask. grpc-go's own health server would keep every name that was ever asked for.
type grpcHealth struct {
	healthpb.UnimplementedHealthServer
	crypto *grpcServer
	state  atomic.Int32 // a healthpb.HealthCheckResponse_ServingStatus
}

// run looks until the server ends.
func (h *grpcHealth) run() {
	t := time.NewTicker(healthEvery)
	defer t.Stop()
	for {
		h.look()
		select {
		case <-h.crypto.ending:
			h.state.Store(int32(healthpb.HealthCheckResponse_NOT_SERVING))
			return
		case <-t.C:
		}
	}
}

// look finds out whether the service can serve.
func (h *grpcHealth) look() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*healthEvery)
	defer cancel()
	state := healthpb.HealthCheckResponse_SERVING
	if h.crypto.cfg.Audit.Ready() != nil || h.crypto.cfg.Service.Ready(ctx) != nil {
		state = healthpb.HealthCheckResponse_NOT_SERVING
	}
	h.state.Store(int32(state))
}

// of returns the state of a service; "" is the whole server.
func (h *grpcHealth) of(service string) healthpb.HealthCheckResponse_ServingStatus {
	if service != "" && service != pb.Crypto_ServiceDesc.ServiceName {
		return healthpb.HealthCheckResponse_SERVICE_UNKNOWN
	}
	return healthpb.HealthCheckResponse_ServingStatus(h.state.Load())
}

// Check is that of healthpb.HealthServer.
func (h *grpcHealth) Check(_ context.Context, in *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	state := h.of(in.GetService())
	if state == healthpb.HealthCheckResponse_SERVICE_UNKNOWN {
		return nil, status.Error(codes.NotFound, "there is no such service here")
	}
	return &healthpb.HealthCheckResponse{Status: state}, nil
}

// List is that of healthpb.HealthServer.
func (h *grpcHealth) List(context.Context, *healthpb.HealthListRequest) (*healthpb.HealthListResponse, error) {
	all := map[string]*healthpb.HealthCheckResponse{}
	for _, service := range []string{"", pb.Crypto_ServiceDesc.ServiceName} {
		all[service] = &healthpb.HealthCheckResponse{Status: h.of(service)}
	}
	return &healthpb.HealthListResponse{Statuses: all}, nil
}

// Watch is that of healthpb.HealthServer.
func (h *grpcHealth) Watch(in *healthpb.HealthCheckRequest, stream healthpb.Health_WatchServer) error {
	t := time.NewTicker(healthEvery / 4)
	defer t.Stop()
	last := healthpb.HealthCheckResponse_ServingStatus(-1)
	for {
		if now := h.of(in.GetService()); now != last {
			if err := stream.Send(&healthpb.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			last = now
		}
		select {
		case <-t.C:
		case <-h.crypto.ending:
			return errEnding
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}
