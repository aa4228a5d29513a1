package remote

import (
	"context"
	"io"
	"sync"

	"google.golang.org/grpc"

	pb "github.com/trikey/trikey/hsm/remote/machinepb"
)

// link is one stream to the machine, from when it was opened until it broke.
type link struct {
	stream grpc.BidiStreamingClient[pb.Requests, pb.Answers]
	cancel context.CancelFunc
	out    *outbox

	mu      sync.Mutex // guards all below
	next    uint64
	pending map[uint64]chan *pb.Answer // calls that wait for an answer
	failed  error                      // why the link broke
}

// serve carries calls until the link breaks, and says why.
func (l *link) serve() error {
	var sending sync.WaitGroup
	sending.Go(func() {
		if l.out.send(l.stream.Context().Done(), func(f frame) error { return l.stream.SendMsg(f) }) != nil {
			l.cancel() // which Recv notices
		}
	})
	err := l.receive()
	l.cancel()
	sending.Wait()
	return err
}

func (l *link) receive() error {
	for {
		m, err := l.stream.Recv()
		if err != nil {
			return err
		}
		for _, a := range m.GetAnswers() {
			l.mu.Lock()
			waiting := l.pending[a.GetId()]
			delete(l.pending, a.GetId())
			l.mu.Unlock()
			if waiting != nil { // its caller has not given up
				waiting <- a
			}
		}
	}
}

// fail ends every call that waits.
func (l *link) fail(why error) {
	if why == nil {
		why = io.ErrUnexpectedEOF
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = why
	for _, waiting := range l.pending {
		close(waiting)
	}
	l.pending = nil
}

func (l *link) call(ctx context.Context, r *pb.Request) (*pb.Answer, error) {
	waiting := make(chan *pb.Answer, 1)
	l.mu.Lock()
	if l.failed != nil {
		defer l.mu.Unlock()
		return nil, l.failed
	}
	l.next++
	r.Id = l.next
	l.pending[r.Id] = waiting
	l.mu.Unlock()
	part, err := partOf(r)
	if err != nil {
		l.forget(r.Id)
		return nil, err
	}
	l.out.put(part)
	select {
	case a, ok := <-waiting:
		if !ok {
			return nil, l.failed
		}
		return a, nil
	case <-ctx.Done():
		if l.forget(r.Id) {
			if part, err := partOf(&pb.Request{Id: r.GetId(), Kind: pb.Request_CANCEL}); err == nil {
				l.out.put(part)
			}
		}
		return nil, ctx.Err()
	}
}

// forget gives up waiting for an answer, and reports whether it was still to come.
func (l *link) forget(id uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.pending[id]
	delete(l.pending, id)
	return ok
}
