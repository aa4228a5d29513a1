package remote

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/trikey/trikey/hsm/remote/machinepb"
	"github.com/trikey/trikey/internal/fault"
)

// session is the machine's end of one stream.
type session struct {
	server *Server
	stream grpc.BidiStreamingServer[pb.Requests, pb.Answers]
	ctx    context.Context // of every call of the stream
	cancel context.CancelFunc
	out    *outbox
	slots  chan struct{}  // one for each call that is worked at
	calls  sync.WaitGroup // the same, for the end

	mu      sync.Mutex // guards all below
	working map[uint64]context.CancelFunc
}

func newSession(s *Server, stream grpc.BidiStreamingServer[pb.Requests, pb.Answers]) *session {
	ctx, cancel := context.WithCancel(stream.Context())
	return &session{
		server: s, stream: stream, ctx: ctx, cancel: cancel, out: newOutbox(), slots: make(chan struct{}, s.cfg.InFlight),
		working: map[uint64]context.CancelFunc{},
	}
}

// run serves the stream until either end closes it. Where the machine drains, every call
// that was taken is answered first.
func (s *session) run() error {
	defer s.cancel()
	received := make(chan struct{})
	// It ends with the stream, and so after this handler.
	s.server.receiving.Go(func() {
		defer close(received)
		s.receive()
	})
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		select {
		case <-s.server.draining:
		case <-received:
		}
		// A request that was being taken when the draining began is among the calls now.
		s.mu.Lock()
		s.mu.Unlock() //nolint:staticcheck // it waits for who has it
		s.calls.Wait()
		s.out.close()
	}()
	err := s.out.send(s.ctx.Done(), func(f frame) error { return s.stream.SendMsg(f) })
	s.cancel()
	<-drained
	return err
}

// receive takes requests until the client ends the stream or is gone.
func (s *session) receive() {
	for {
		m, err := s.stream.Recv()
		if err != nil {
			s.cancel() // nobody waits for the answers
			return
		}
		for _, r := range m.GetRequests() {
			if !s.take(r) {
				return
			}
		}
	}
}

// take begins to work at a request, once there is a slot.
func (s *session) take(r *pb.Request) bool {
	if r.GetKind() == pb.Request_CANCEL {
		s.mu.Lock()
		defer s.mu.Unlock()
		if cancel := s.working[r.GetId()]; cancel != nil {
			cancel()
		}
		return true
	}
	select {
	case s.slots <- struct{}{}:
	case <-s.ctx.Done():
		return false
	}
	ctx, cancel := context.WithCancel(s.ctx)
	s.mu.Lock()
	if s.server.isDraining() {
		s.mu.Unlock()
		cancel()
		<-s.slots
		s.answer(&pb.Answer{Id: r.GetId(), Fault: faultOf(errDraining)})
		return true
	}
	s.working[r.GetId()] = cancel
	s.calls.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.calls.Done()
		a := s.server.handle(ctx, r)
		s.mu.Lock()
		delete(s.working, r.GetId())
		s.mu.Unlock()
		if ctx.Err() == nil {
			s.answer(a)
		}
		cancel()
		<-s.slots
	}()
	return true
}

// answer puts an answer into the outbox, and wipes the results that are in it.
func (s *session) answer(a *pb.Answer) {
	part, err := partOf(a)
	for _, r := range a.GetResults() {
		clear(r.GetOutput())
		clear(r.GetPlain())
	}
	if err == nil && len(part) > maxMessage {
		err = fault.New(fault.TooLarge, "the answer is longer than %d bytes; ask for fewer operations at a time", maxMessage)
	}
	if err != nil {
		if part, err = partOf(&pb.Answer{Id: a.GetId(), Fault: faultOf(err)}); err != nil {
			s.cancel()
			return
		}
	}
	s.out.put(part)
}

// toStatus is a fault that ends a stream.
func toStatus(err error) error { return status.Error(codes.Unavailable, err.Error()) }
