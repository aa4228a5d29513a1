package sdk

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/trikey/trikey/api/v1/cryptopb"
	"github.com/trikey/trikey/internal/fault"
)

// How operations are gathered into messages. While fewer than linkWindow messages are
// unanswered the next goes out at once, with whatever waits; while as many are, operations
// gather. So an idle link adds no delay, and a busy one sends few messages with many
// operations: it finds its own measure.
const (
	linkWindow  = 4
	linkOps     = 512       // of a message
	linkBytes   = 512 << 10 // of a message that has more than one operation
	linkLargest = maxBytes  // of an operation; larger ones go over HTTP
)

// group is operations that were given together, and are waited for together.
type group struct {
	ops     []*pb.Operation
	results []*pb.Result  // their ids have no meaning
	left    int           // results that are still to come
	err     error         // of the group as a whole
	done    chan struct{} // closed when left is 0 or err is set
	gone    bool          // nobody waits any more
}

// entry is one operation of a group.
type entry struct {
	*group
	at int
}

// sent is a message that is not wholly answered.
type sent struct {
	entries []entry
	left    int
	at      time.Time
}

// idStep is the distance between the ids of messages: an operation's id is that of its
// message and its place in it.
const idStep = 1024

// link is one connection to a service, and at most one stream of operations on it at a
// time. When the stream ends, what waited fails, and the next call begins another.
type link struct {
	conn    *grpc.ClientConn
	timeout time.Duration
	running sync.WaitGroup // of sessions

	encoding sync.Mutex // held while operations are encoded; taken before mu

	mu       sync.Mutex // guards all below
	work     *sync.Cond // there is something for the sender of the session to do
	waiting  []entry
	messages map[uint64]*sent
	next     uint64             // id of the next message
	end      context.CancelFunc // of the session; nil when there is none
	heard    time.Time          // when the last answer came
	closed   bool
	shown    shown      // of the session
	ended    *sync.Cond // there is no session any more
}

// shown is the authorization of a session or call, and when it was asked for: calls with an
// older one join a session that has a newer.
type shown struct {
	value string
	at    time.Time
}

var errClosed = fault.New(fault.Unavailable, "the client is closed")

func newLink(conn *grpc.ClientConn, timeout time.Duration) *link {
	l := &link{conn: conn, timeout: timeout, messages: map[uint64]*sent{}}
	l.work, l.ended = sync.NewCond(&l.mu), sync.NewCond(&l.mu)
	return l
}

// do has operations carried out, and returns when all have results, or none will. A stream
// that began with an older authorization is ended: its calls are made again on the next.
func (l *link) do(ctx context.Context, by shown, ops []*pb.Operation) ([]*pb.Result, error) {
	g := &group{ops: ops, results: make([]*pb.Result, len(ops)), left: len(ops), done: make(chan struct{})}
	if err := l.submit(by, g); err != nil {
		return nil, err
	}
	select {
	case <-g.done:
		return g.results, g.err
	case <-ctx.Done():
		l.leave(g)
		return nil, ctx.Err()
	}
}

func (l *link) submit(by shown, g *group) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.end != nil && l.shown.value != by.value && by.at.After(l.shown.at) {
		l.end()
		l.ended.Wait()
	}
	if l.closed {
		return errClosed
	}
	for i := range g.ops {
		l.waiting = append(l.waiting, entry{g, i})
	}
	if l.end == nil {
		ctx, cancel := context.WithCancel(context.Background())
		if by.value != "" { // else it is the connection's certificate that counts
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", by.value)
		}
		l.end, l.heard, l.shown = cancel, time.Now(), by
		l.running.Go(func() { l.session(ctx, cancel) })
	}
	l.work.Signal()
	return nil
}

// leave gives a group up. When nothing was heard for as long as a call may take, the session
// is given up too: a service that was stopped or cut off does not say so. What the group has
// is the caller's again afterwards: nothing reads it.
func (l *link) leave(g *group) {
	l.encoding.Lock()
	defer l.encoding.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	g.gone = true
	for _, s := range l.messages {
		if l.end != nil && time.Since(s.at) >= l.timeout && time.Since(l.heard) >= l.timeout {
			l.end()
		}
	}
}

// session opens a stream, sends what waits, and takes the answers, until it breaks.
func (l *link) session(ctx context.Context, cancel context.CancelFunc) {
	defer cancel()
	stream, err := l.open(ctx, cancel)
	if err == nil {
		var receiving sync.WaitGroup
		receiving.Go(func() {
			received := l.receive(stream)
			l.mu.Lock()
			err = received
			l.work.Broadcast()
			l.mu.Unlock()
		})
		l.send(stream, cancel, &err)
		cancel()
		receiving.Wait()
	}
	l.fail(errorOf(err))
}

// open begins a stream; the time for that is limited as for any call.
func (l *link) open(ctx context.Context, cancel context.CancelFunc) (pb.Crypto_DoClient, error) {
	late := time.AfterFunc(l.timeout, cancel)
	defer late.Stop()
	stream, err := pb.NewCryptoClient(l.conn).Do(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, status.Error(codes.Unavailable, "no connection in time")
	}
	return stream, err
}

// send sends what waits until broken says why it cannot go on.
func (l *link) send(stream pb.Crypto_DoClient, cancel context.CancelFunc, broken *error) {
	for {
		l.mu.Lock()
		for *broken == nil && (len(l.waiting) == 0 || len(l.messages) >= linkWindow) {
			l.work.Wait()
		}
		if *broken != nil {
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		m, err := l.encode(stream)
		if m == nil && err == nil {
			continue
		}
		if err != nil || stream.SendMsg(m) != nil {
			if err != nil {
				cancel() // what cannot be encoded cannot be sent
			}
			l.mu.Lock() // the receiver learns why
			for *broken == nil {
				l.work.Wait()
			}
			l.mu.Unlock()
			return
		}
	}
}

// encode makes a message of what waits. It returns nil when there is nothing.
func (l *link) encode(stream pb.Crypto_DoClient) (*grpc.PreparedMsg, error) {
	l.encoding.Lock()
	defer l.encoding.Unlock()
	l.mu.Lock()
	m := l.message()
	l.mu.Unlock()
	if len(m.GetOperations()) == 0 {
		return nil, nil //nolint:nilnil // nothing is what nil is
	}
	encoded := &grpc.PreparedMsg{}
	return encoded, encoded.Encode(stream, m)
}

// message takes from what waits. l.mu is held.
func (l *link) message() *pb.DoRequest {
	s := &sent{entries: make([]entry, 0, min(len(l.waiting), linkOps)), at: time.Now()}
	m := &pb.DoRequest{Operations: make([]*pb.Operation, 0, cap(s.entries))}
	ops := make([]pb.Operation, cap(s.entries))
	taken, size := 0, 0
	for _, e := range l.waiting {
		if e.gone {
			taken++
			continue
		}
		op := e.ops[e.at]
		size += sizeOf(op)
		if n := len(s.entries); n == linkOps || n > 0 && size > linkBytes {
			break
		}
		taken++
		o := &ops[len(s.entries)]
		o.Id, o.Operation = l.next+uint64(len(s.entries)), op.GetOperation()
		s.entries = append(s.entries, e)
		m.Operations = append(m.Operations, o)
	}
	clear(l.waiting[:taken])
	if l.waiting = l.waiting[taken:]; len(l.waiting) == 0 {
		l.waiting = nil
	}
	if s.left = len(s.entries); s.left > 0 {
		l.messages[l.next] = s
		l.next += idStep
	}
	return m
}

// receive takes answers until the stream ends, and returns why it did.
func (l *link) receive(stream pb.Crypto_DoClient) error {
	for {
		out, err := stream.Recv()
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.heard = time.Now()
		for _, r := range out.GetResults() {
			l.take(r)
		}
		l.work.Signal()
		l.mu.Unlock()
	}
}

// take hands a result to whom it belongs. One that nobody has asked for is dropped. l.mu is held.
func (l *link) take(r *pb.Result) {
	at := r.GetId() % idStep
	s := l.messages[r.GetId()-at]
	if s == nil || at >= uint64(len(s.entries)) || s.entries[at].group == nil {
		return
	}
	e := s.entries[at]
	s.entries[at] = entry{}
	if s.left--; s.left == 0 {
		delete(l.messages, r.GetId()-at)
	}
	e.results[e.at] = r
	if e.left--; e.left == 0 && e.err == nil {
		close(e.done)
	}
}

// fail ends a session: nothing that waits for it will have a result.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.messages {
		for _, e := range s.entries {
			e.fail(err)
		}
	}
	for _, e := range l.waiting {
		e.fail(err)
	}
	clear(l.messages)
	l.waiting, l.end = nil, nil
	l.ended.Broadcast()
}

func (e entry) fail(err error) {
	if e.group == nil || e.left == 0 || e.err != nil {
		return
	}
	e.err = err
	close(e.done)
}

// close ends the session and the connection.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	if l.end != nil {
		l.end()
	}
	l.mu.Unlock()
	_ = l.conn.Close()
	l.running.Wait()
}
