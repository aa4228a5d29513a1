package api

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	v1 "github.com/trikey/trikey/api/v1"
	pb "github.com/trikey/trikey/api/v1/cryptopb"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/audit"
)

// Limits of a stream of operations.
const (
	doSlots     = 16        // messages under way; no more is read while they are taken
	doSlotBytes = 512 << 10 // a larger message takes as many slots as it has of these
	doAge       = time.Hour // then the stream ends, and its client shows anew who it is
	doDrain     = 10 * time.Second
)

const opDo = "do"

var (
	errEnding = grpcStatus(context.Background(), "", fault.New(fault.Unavailable, "the service ends; go on at another node"))
	errAge    = grpcStatus(context.Background(), "", fault.New(fault.Unavailable, "the stream is as old as one may be; go on with a new one"))
)

// doStream is one stream of operations. One goroutine reads messages; each is carried
// out by one of its own, which also sends its answer.
type doStream struct {
	*grpcServer
	stream  grpc.ServerStream
	request request       // with the caller that began the stream
	slots   chan struct{} // filled by the reader, emptied by those that have answered

	mu      sync.Mutex // guards ended, and the adding to working
	ended   bool       // nothing more is begun
	working sync.WaitGroup

	sending sync.Mutex // guards the sending of answers
}

// doHandler serves Do.
func doHandler(srv any, stream grpc.ServerStream) error {
	g, _ := srv.(*grpcServer)
	ctx := stream.Context()
	method, _ := grpc.MethodFromServerStream(stream)
	d := &doStream{grpcServer: g, stream: stream, request: request{Request: grpcRequest(ctx, method)}, slots: make(chan struct{}, doSlots)}
	start := time.Now()
	if err := g.enter(opDo, &d.request); err != nil {
		g.cfg.Metrics.observe(opDo, err, &d.request, time.Since(start))
		return grpcStatus(ctx, method, public(err))
	}
	read := make(chan error, 1)
	g.running.Go(func() { read <- d.read() })
	age := time.NewTimer(doAge)
	defer age.Stop()
	select {
	case err := <-read: // the caller has sent all, or has gone
		d.end()
		d.working.Wait()
		return grpcStatus(ctx, method, err)
	case <-g.ending:
		d.drain()
		return errEnding
	case <-age.C:
		d.drain()
		return errAge
	}
}

// end has nothing more begun.
func (d *doStream) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
}

// drain waits for what is under way. A caller that does not take its answers is not waited
// for long.
func (d *doStream) drain() {
	d.end()
	done := make(chan struct{})
	d.running.Go(func() {
		d.working.Wait()
		close(done)
	})
	t := time.NewTimer(doDrain)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	case <-d.stream.Context().Done():
	}
}

// read takes messages until there are no more. It ends with the stream: when the handler has
// returned, nothing can be received.
func (d *doStream) read() error {
	for {
		if err := d.take(1); err != nil {
			return err
		}
		in := &incoming{}
		switch err := d.stream.RecvMsg(in); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return received(err)
		}
		slots := min(1+in.size/doSlotBytes, doSlots)
		if err := d.take(slots - 1); err != nil {
			return err
		}
		if !d.begin(&in.DoRequest, slots) {
			return nil
		}
	}
}

func (d *doStream) take(n int) error {
	for range n {
		select {
		case d.slots <- struct{}{}:
		case <-d.stream.Context().Done():
			return d.stream.Context().Err()
		}
	}
	return nil
}

func (d *doStream) begin(in *pb.DoRequest, slots int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return false
	}
	d.working.Add(1)
	d.running.Go(func() {
		defer d.working.Done()
		d.answer(d.do(in))
		for range slots {
			<-d.slots
		}
	})
	return true
}

// answer sends. Where that fails the stream has ended, which its reader sees.
func (d *doStream) answer(out *pb.DoResponse) {
	d.sending.Lock()
	defer d.sending.Unlock()
	_ = d.stream.SendMsg(out)
	for _, r := range out.GetResults() {
		clear(r.GetDataKey().GetPlaintext())
	}
}

// do carries out the operations of a message.
func (d *doStream) do(in *pb.DoRequest) *pb.DoResponse {
	start := time.Now()
	r := d.request
	out, err := d.operations(&r, in)
	d.cfg.Metrics.observe(opDo, err, &r, time.Since(start))
	if err != nil { // of the message as a whole
		failed := grpcItemError(r.Context(), err)
		out = &pb.DoResponse{Results: make([]*pb.Result, len(in.GetOperations()))}
		for i, o := range in.GetOperations() {
			out.Results[i] = &pb.Result{Id: o.GetId(), Result: &pb.Result_Error{Error: failed}}
		}
	}
	return out
}

func (d *doStream) operations(r *request, in *pb.DoRequest) (*pb.DoResponse, error) {
	if err := d.enter(opDo, r); err != nil { // anew, as if it were a call of its own
		return nil, err
	}
	all := in.GetOperations()
	err := known(in)
	if err == nil && len(all) > v1.MaxItems {
		err = fault.New(fault.TooLarge, "operations: %d are given, at most %d are allowed", len(all), v1.MaxItems)
	}
	if err != nil {
		return nil, d.refused(r, err)
	}
	r.items = len(all)
	calls, err := d.carryOut(r, all)
	if err != nil {
		return nil, d.refused(r, err)
	}
	out := &pb.DoResponse{Results: make([]*pb.Result, len(all))}
	results := make([]pb.Result, len(all))
	for i, o := range all {
		resultOf(r.Context(), o, &calls[i], &results[i])
		out.Results[i] = &results[i]
	}
	if err := d.recordKinds(r, all, calls); err != nil {
		return nil, err
	}
	return out, nil
}

// carryOut does the operations that can be read; the others have their errors.
func (d *doStream) carryOut(r *request, all []*pb.Operation) ([]kms.Call, error) {
	calls := make([]kms.Call, len(all))
	readable := true
	for i, o := range all {
		var err error
		if calls[i], err = callOf(o); err == nil {
			err = permit(kindOf(o), r.caller)
		}
		if calls[i].Err = err; err != nil {
			readable = false
		}
	}
	if readable {
		return calls, d.cfg.Service.Do(r.Context(), r.caller, calls)
	}
	good, at := make([]kms.Call, 0, len(all)), make([]int, 0, len(all))
	for i := range calls {
		if calls[i].Err == nil {
			good, at = append(good, calls[i]), append(at, i)
		}
	}
	if err := d.cfg.Service.Do(r.Context(), r.caller, good); err != nil {
		return nil, err
	}
	for j, i := range at {
		calls[i] = good[j]
	}
	return calls, nil
}

// recordKinds records all operations of a message at once, each kind under the name that
// it has as a call of its own.
func (d *doStream) recordKinds(r *request, all []*pb.Operation, calls []kms.Call) error {
	kind := opDo
	for i, o := range all {
		if k := kindOf(o); i == 0 {
			kind = k
		} else if k != kind {
			return d.recordMixed(r, all, calls)
		}
	}
	r.calls = calls
	return d.record(kind, r, nil)
}

func (d *doStream) recordMixed(r *request, all []*pb.Operation, calls []kms.Call) error {
	byKind := map[string][]kms.Call{}
	for i, o := range all {
		byKind[kindOf(o)] = append(byKind[kindOf(o)], calls[i])
	}
	var events []audit.Event
	for kind, of := range byKind {
		part := *r
		part.calls, part.items = of, len(of)
		events = append(events, d.events(kind, &part, nil)...)
	}
	return d.cfg.Audit.Operation(events...)
}

// refused records that nothing of a message was done.
func (d *doStream) refused(r *request, err error) error {
	if failed := d.record(opDo, r, err); failed != nil {
		return failed
	}
	return err
}
