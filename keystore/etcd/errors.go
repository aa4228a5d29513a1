package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
)

// translate makes a store's error of the client's. ctx is the caller's own.
func (s *Store) translate(ctx context.Context, err error) error {
	switch {
	case s.ended.Err() != nil:
		return keystore.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case is(err, rpctypes.ErrCompacted), is(err, rpctypes.ErrFutureRev):
		// A revision that is yet to come: etcd was restored from a backup, and its
		// history is another.
		return keystore.ErrCompacted
	case is(err, rpctypes.ErrPermissionDenied):
		return fault.Wrap(fault.BadConfig, err, "etcd does not let the user %q read and write under %q; grant its role readwrite on that prefix",
			s.cfg.User, s.cfg.Prefix)
	case is(err, rpctypes.ErrAuthFailed), is(err, rpctypes.ErrUserEmpty), is(err, rpctypes.ErrAuthNotEnabled):
		return fault.Wrap(fault.BadConfig, err, "etcd does not accept the user %q (store.user, store.password_file)", s.cfg.User)
	case is(err, rpctypes.ErrTooManyOps):
		return fault.Wrap(fault.BadConfig, err, "etcd takes fewer than %d operations in one transaction; start its members with --max-txn-ops=%d or more",
			keystore.MaxTxn, keystore.MaxTxn)
	case is(err, rpctypes.ErrRequestTooLarge):
		return fault.Wrap(fault.BadConfig, err, "etcd takes requests of fewer bytes than its default; start its members with --max-request-bytes=1572864 or more")
	case is(err, rpctypes.ErrAuthOldRevision):
		return unavailable(err, "etcd's users were changed meanwhile; try again")
	case is(err, rpctypes.ErrNoSpace):
		return unavailable(err, "etcd's space is used up, and it refuses changes; compact and defragment it, or raise --quota-backend-bytes, then disarm the alarm")
	}
	switch code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted, codes.Canceled, codes.Unauthenticated, codes.ResourceExhausted:
		return unavailable(err, "etcd does not answer, or has no quorum; try again, and look at its members")
	}
	return fault.Wrap(fault.Internal, err, "etcd")
}

// is compares by what the client knows an error as: the same fact arrives as a gRPC
// status from a call, and as text from a watch.
func is(err, target error) bool {
	return errors.Is(err, target) || rpctypes.ErrorDesc(err) == rpctypes.ErrorDesc(target)
}

// code returns the gRPC code that an error came with.
func code(err error) codes.Code {
	var known rpctypes.EtcdError
	switch {
	case errors.As(err, &known):
		return known.Code()
	case is(err, context.DeadlineExceeded): // a member whose own time was up answers with the text alone
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	return status.Code(err)
}

func unavailable(cause error, detail string) error {
	return fault.Wrap(fault.Unavailable, fmt.Errorf("%w: %w", keystore.ErrUnavailable, cause), "%s", detail)
}
