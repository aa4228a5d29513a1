package sdk

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	grpctls "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	v1 "github.com/trikey/trikey/api/v1"
	pb "github.com/trikey/trikey/api/v1/cryptopb"
	"github.com/trikey/trikey/internal/fault"
)

// links are the connections of a client over gRPC: some for each address.
type links struct {
	addresses   [][]*link
	credentials credentials
	timeout     time.Duration
	preferred   atomic.Uint32 // the address that answered last
	turn        atomic.Uint32 // of an address's links
}

// linksPerAddress is how many connections there are to an address: one has one core at
// each end encrypt what it carries.
const linksPerAddress = 2

// newLinks connects to nothing yet.
func newLinks(cfg *Config, config *tls.Config, auth credentials) (*links, error) {
	if len(cfg.GRPC) == 0 {
		return nil, nil //nolint:nilnil // no links are what nil is
	}
	all := &links{timeout: cfg.Timeout, credentials: auth}
	for _, address := range cfg.GRPC {
		var of []*link
		for range linksPerAddress {
			conn, err := grpc.NewClient("passthrough:///"+address,
				grpc.WithTransportCredentials(grpctls.NewTLS(config.Clone())),
				grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), // messages do not pass a proxy that the environment names
				grpc.WithConnectParams(grpc.ConnectParams{
					Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: .2, MaxDelay: 5 * time.Second},
					MinConnectTimeout: cfg.Timeout,
				}),
				grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: cfg.Timeout}),
				grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
				grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(2*streamWindow),
			)
			if err != nil {
				all.close()
				return nil, fault.New(fault.BadRequest, "sdk: the gRPC address %q is not host:port", address)
			}
			of = append(of, newLink(conn, cfg.Timeout))
		}
		all.addresses = append(all.addresses, of)
	}
	return all, nil
}

const (
	maxAnswer    = 2 * v1.MaxBody // a message that re-encrypts to other suites may grow
	streamWindow = 4 << 20        // bytes of answers that wait to be read (RFC 9113 section 5.2)
)

func (l *links) close() {
	if l == nil {
		return
	}
	for _, of := range l.addresses {
		for _, one := range of {
			one.close()
		}
	}
}

// do has operations carried out at the address that answered last, or at another. It says
// whether that was done; where it was not, no address can be reached over gRPC or serve,
// and HTTP may.
func (l *links) do(ctx context.Context, ops ...*pb.Operation) (results []*pb.Result, served bool, err error) {
	if l == nil || len(ops) == 0 {
		return nil, false, nil
	}
	for _, op := range ops {
		if sizeOf(op) > linkLargest {
			return nil, false, nil
		}
	}
	for try := 0; ; try++ {
		results, served, value, err := l.everywhere(ctx, ops)
		if try > 0 || !errors.Is(err, fault.Unauthorized) || !l.credentials.refused(value) {
			return results, served, err
		}
	}
}

// everywhere tries the addresses in turn. It returns what the last one was shown, too.
func (l *links) everywhere(ctx context.Context, ops []*pb.Operation) (results []*pb.Result, served bool, value string, err error) {
	n := uint32(len(l.addresses))
	first, turn := l.preferred.Load(), l.turn.Add(1)
	for i := range n * rounds {
		at, one := (first+i)%n, turn+i/n // of an address, another link in each round
		by := shown{at: time.Now()}
		if by.value, err = l.credentials.authorization(ctx); err != nil {
			return nil, true, "", err
		}
		results, err = l.once(ctx, l.addresses[at][one%linksPerAddress], by, ops)
		if err == nil {
			err = wholeError(results)
		}
		switch {
		case ctx.Err() != nil:
			return nil, true, by.value, ctx.Err()
		case err == nil, !fault.CodeOf(err).Retryable(), errors.Is(err, fault.RateLimited):
			l.preferred.Store(at)
			return results, true, by.value, err
		}
	}
	return nil, false, "", nil
}

// once gives one link its time.
func (l *links) once(ctx context.Context, to *link, by shown, ops []*pb.Operation) ([]*pb.Result, error) {
	limited, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	results, err := to.do(limited, by, ops)
	if err != nil && limited.Err() != nil {
		return nil, fault.New(fault.Unavailable, "no answer within %s", l.timeout)
	}
	return results, err
}

// wholeError is why a message was not served at all: then its first operation says so as
// all others do.
func wholeError(results []*pb.Result) error {
	e := results[0].GetError()
	switch code := fault.Code(e.GetCode()); {
	case code == fault.RateLimited: // of this one; there may be others
	case e.GetRetryable(), code == fault.Unauthorized:
		return errorOfItem(e)
	}
	return nil
}

func errorOfItem(e *pb.Error) error {
	if e == nil {
		return nil
	}
	return after((&v1.ItemError{Code: fault.Code(e.GetCode()), Detail: e.GetDetail()}).Err(), time.Duration(e.GetRetryAfterMs())*time.Millisecond)
}

// after tells a fault how long to wait before another try.
func after(err error, wait time.Duration) error {
	if f := (*fault.Error)(nil); errors.As(err, &f) {
		f.RetryAfter = wait
	}
	return err
}

// errorOf is the fault that a status carries, and Unavailable for one that carries none: then
// it did not come from a Trikey service.
func errorOf(err error) error {
	if errors.Is(err, io.EOF) {
		return fault.New(fault.Unavailable, "the stream was ended")
	}
	st, _ := status.FromError(err)
	var wait time.Duration
	var told error
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == v1.ErrorDomain {
				told = fault.Problem{Code: fault.Code(d.GetReason()), Detail: st.Message()}.Err()
			}
		case *errdetails.RetryInfo:
			wait = d.GetRetryDelay().AsDuration()
		}
	}
	if told != nil {
		return after(told, wait)
	}
	if st.Code() == codes.ResourceExhausted {
		return fault.New(fault.TooLarge, "the service refuses a message of that size")
	}
	return fault.Wrap(fault.Unavailable, err, "gRPC")
}

// one has one operation carried out.
func (l *links) one(ctx context.Context, op *pb.Operation) (*pb.Result, bool, error) {
	results, served, err := l.do(ctx, op)
	if !served || err != nil {
		return nil, served, err
	}
	return results[0], true, errorOfItem(results[0].GetError())
}
