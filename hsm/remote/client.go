package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/trikey/trikey/hsm"
	pb "github.com/trikey/trikey/hsm/remote/machinepb"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/unixsock"
)

// Config says how to reach a machine.
type Config struct {
	// Address is HOST:PORT, or unix:// and the path of a socket.
	Address string
	// TLS has this service's certificate and the authorities of machines. It is not used
	// for a socket, of which the kernel tells the machine who is at the other end.
	TLS *tls.Config
	// Patience is how long one try to connect may take; 3 seconds when zero.
	Patience time.Duration
}

// Machine is a machine elsewhere. It connects by itself, and again whenever the
// connection breaks; a call that has no connection fails with fault.Unavailable.
type Machine struct {
	cfg  Config
	conn *grpc.ClientConn
	rpc  pb.MachineClient
	stop context.CancelFunc
	done chan struct{} // closed when the connecting goroutine has ended

	mu   sync.Mutex // guards all below
	link *link      // nil while there is none
	why  error      // why there is none; nil while a first try is under way
	news chan struct{}
}

var (
	_ hsm.Machine  = (*Machine)(nil)
	_ hsm.Importer = (*Machine)(nil)
)

const unixScheme = "unix://"

// Dial returns the machine at an address. It does not wait for a connection.
func Dial(cfg Config) (*Machine, error) {
	if cfg.Patience == 0 {
		cfg.Patience = 3 * time.Second
	}
	network, target := "tcp", cfg.Address
	if path, ok := strings.CutPrefix(cfg.Address, unixScheme); ok {
		network, target = "unix", path
	}
	secure := insecure.NewCredentials()
	if network == "tcp" {
		if cfg.TLS == nil || len(cfg.TLS.Certificates) == 0 && cfg.TLS.GetClientCertificate == nil {
			return nil, fault.New(fault.BadConfig, "machine %s: a machine elsewhere knows a service by its certificate; give link.cert, link.key and link.ca", cfg.Address)
		}
		secure = credentials.NewTLS(cfg.TLS)
	}
	var dialer net.Dialer
	conn, err := grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(secure),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			if network == "unix" {
				return unixsock.Dial(ctx, address)
			}
			return dialer.DialContext(ctx, network, address)
		}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window), grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(), grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: .2, MaxDelay: time.Second}, MinConnectTimeout: cfg.Patience,
		}))
	if err != nil {
		return nil, fault.Wrap(fault.BadConfig, err, "machine %s", cfg.Address)
	}
	ctx, stop := context.WithCancel(context.Background())
	m := &Machine{cfg: cfg, conn: conn, rpc: pb.NewMachineClient(conn), stop: stop, done: make(chan struct{}), news: make(chan struct{})}
	go m.run(ctx)
	return m, nil
}

// run keeps a link, until Close.
func (m *Machine) run(ctx context.Context) {
	defer close(m.done)
	for tries := 0; ; tries++ {
		l, err := m.connect(ctx)
		m.tell(l, m.unreachable(err))
		if err == nil {
			since := time.Now()
			err = l.serve()
			if time.Since(since) > time.Second {
				tries = 0
			}
			m.tell(nil, nil) // those who come now wait for the next try
			l.fail(m.unreachable(err))
		}
		if ctx.Err() != nil {
			m.tell(nil, fault.New(fault.Sealed, "the machine %s was closed here", m.cfg.Address))
			return
		}
		if tries > 0 {
			pause(ctx, min(time.Second, 25*time.Millisecond<<min(tries, 6)))
		}
	}
}

// pause waits for a time of about d, so that services do not knock all at once.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d/2 + rand.N(d)) //nolint:gosec // a pause is no secret
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// tell has callers know of a link, or why there is none.
func (m *Machine) tell(l *link, why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.link, m.why = l, why
	close(m.news)
	m.news = make(chan struct{})
}

// connect opens the stream and waits until the machine has taken it.
func (m *Machine) connect(ctx context.Context) (*link, error) {
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(m.cfg.Patience, cancel)
	m.conn.ResetConnectBackoff()
	stream, err := m.rpc.Work(ctx, grpc.WaitForReady(false))
	if err == nil {
		_, err = stream.Header()
	}
	if err == nil && !late.Stop() {
		err = context.DeadlineExceeded
	}
	if err == nil && stream.Context().Err() == nil {
		return &link{stream: stream, cancel: cancel, out: newOutbox(), pending: map[uint64]chan *pb.Answer{}}, nil
	}
	late.Stop()
	if err == nil { // the machine ended the stream before it began
		_, err = stream.Recv()
	}
	cancel()
	return nil, err
}

// unreachable is the fault of having no connection.
func (m *Machine) unreachable(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if s, ok := status.FromError(err); ok {
		text = s.Message()
	}
	if errors.Is(err, io.EOF) {
		text = "it ended the connection"
	}
	return fault.New(fault.Unavailable, "the crypto machine %s does not answer: %s; see that it runs (trikey machine serve), and that the "+
		"certificates of both ends are good", m.cfg.Address, text)
}

// current returns the link. Where a try to connect is under way it waits for that.
func (m *Machine) current(ctx context.Context) (*link, error) {
	for {
		m.mu.Lock()
		l, why, news := m.link, m.why, m.news
		m.mu.Unlock()
		if l != nil || why != nil {
			return l, why
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// call makes one call and waits for its answer.
func (m *Machine) call(ctx context.Context, r *pb.Request) (*pb.Answer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l, err := m.current(ctx)
	if err != nil {
		return nil, err
	}
	a, err := l.call(ctx, r)
	if err != nil {
		return nil, err
	}
	return a, faultFrom(a.GetFault())
}

// Do has the machine carry out the operations.
func (m *Machine) Do(ctx context.Context, ops []hsm.Op) error {
	a, err := m.call(ctx, &pb.Request{Kind: pb.Request_DO, Ops: opsOf(ops)})
	if err != nil {
		return err
	}
	results := a.GetResults()
	if len(results) != len(ops) {
		return fault.New(fault.Internal, "the crypto machine %s answered %d operations of %d; is it of another release?", m.cfg.Address, len(results), len(ops))
	}
	for i, r := range results {
		op := &ops[i]
		if op.Err = faultFrom(r.GetFault()); op.Err != nil {
			continue
		}
		op.Output, op.Plain = give(op.Output, r.GetOutput()), give(op.Plain, r.GetPlain())
	}
	return nil
}

// give appends a result to what the caller left. The answer's own copy is wiped, unless it
// is what the caller gets.
func give(dst, result []byte) []byte {
	if dst == nil {
		return result
	}
	dst = append(dst, result...)
	clear(result)
	return dst
}

// GenerateKey has the machine make a key.
func (m *Machine) GenerateKey(ctx context.Context, b hsm.Binding) (hsm.GeneratedKey, error) {
	a, err := m.call(ctx, &pb.Request{Kind: pb.Request_GENERATE_KEY, Binding: bindingOf(b)})
	return hsm.GeneratedKey{Wrapped: hsm.WrappedKey(a.GetWrapped()), KCV: a.GetKcv()}, err
}

// BeginImport has the machine make a one-time key, which stays there.
func (m *Machine) BeginImport(ctx context.Context) (hsm.ImportKey, error) {
	a, err := m.call(ctx, &pb.Request{Kind: pb.Request_BEGIN_IMPORT})
	if err != nil {
		return hsm.ImportKey{}, err
	}
	return hsm.ImportKey{ID: idFrom(a.GetImportId()), Public: a.GetPublicKey(), Expires: time.Unix(a.GetExpires(), 0)}, nil
}

// FinishImport has the machine take a key in.
func (m *Machine) FinishImport(ctx context.Context, id hsm.ID, blob []byte, b hsm.Binding) (hsm.GeneratedKey, error) {
	a, err := m.call(ctx, &pb.Request{Kind: pb.Request_FINISH_IMPORT, ImportId: id[:], Blob: blob, Binding: bindingOf(b)})
	return hsm.GeneratedKey{Wrapped: hsm.WrappedKey(a.GetWrapped()), KCV: a.GetKcv()}, err
}

// Status asks the machine, beside the calls that it works at.
func (m *Machine) Status(ctx context.Context) (hsm.Status, error) {
	if _, err := m.current(ctx); err != nil {
		return hsm.Status{}, err
	}
	a, err := m.rpc.Probe(ctx, &pb.ProbeRequest{}, grpc.WaitForReady(false))
	switch {
	case ctx.Err() != nil:
		return hsm.Status{}, ctx.Err()
	case err != nil:
		return hsm.Status{}, m.unreachable(err)
	}
	return statusFrom(a), faultFrom(a.GetFault())
}

// Reset breaks the connection and makes another: calls under way fail with
// fault.Unavailable.
func (m *Machine) Reset() {
	m.mu.Lock()
	l := m.link
	m.mu.Unlock()
	if l != nil {
		l.cancel()
	}
}

// Close ends the connection. The machine stays as it is.
func (m *Machine) Close() error {
	m.stop()
	<-m.done
	err := m.conn.Close()
	if status.Code(err) == codes.Canceled { // closed already
		return nil
	}
	return err
}
