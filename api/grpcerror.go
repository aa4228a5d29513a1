package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"strconv"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/trikey/trikey/api/v1"
	pb "github.com/trikey/trikey/api/v1/cryptopb"
	"github.com/trikey/trikey/internal/fault"
)

// grpcCodes are the status codes of gRPC for the HTTP statuses of faults (package fault).
var grpcCodes = map[int]codes.Code{
	http.StatusBadRequest:            codes.InvalidArgument,
	http.StatusUnauthorized:          codes.Unauthenticated,
	http.StatusForbidden:             codes.PermissionDenied,
	http.StatusNotFound:              codes.NotFound,
	http.StatusMethodNotAllowed:      codes.Unimplemented,
	http.StatusConflict:              codes.FailedPrecondition,
	http.StatusRequestEntityTooLarge: codes.ResourceExhausted,
	http.StatusUnsupportedMediaType:  codes.InvalidArgument,
	http.StatusUnprocessableEntity:   codes.InvalidArgument,
	http.StatusTooManyRequests:       codes.ResourceExhausted,
	http.StatusServiceUnavailable:    codes.Unavailable,
	http.StatusInternalServerError:   codes.Internal,
}

// grpcStatus returns err as a status with the ErrorInfo that docs/api.md describes. The
// log has the request id where err is the service's own failure.
func grpcStatus(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	if gone := ctx.Err(); gone != nil && errors.Is(err, gone) {
		return status.FromContextError(gone).Err()
	}
	id := requestID()
	p := fault.ProblemOf(err, id)
	if p.Status == http.StatusInternalServerError {
		slog.ErrorContext(ctx, "request failed", "request_id", id, "method", method, "error", err)
	}
	text := p.Detail
	if text == "" {
		text = p.Title
	}
	code, known := grpcCodes[p.Status]
	if !known {
		code = codes.Unknown
	}
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{
		Reason: string(p.Code), Domain: v1.ErrorDomain,
		Metadata: map[string]string{"retryable": strconv.FormatBool(p.Retryable), "request_id": id},
	}}
	if after := fault.RetryAfterOf(err); after > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
	}
	st, err := status.New(code, text).WithDetails(details...)
	if err != nil {
		return status.Error(codes.Internal, "the error cannot be encoded")
	}
	return st.Err()
}

func requestID() string {
	var raw [12]byte
	_, _ = rand.Read(raw[:]) // never fails
	return hex.EncodeToString(raw[:])
}

// grpcItemError is what went wrong with one item or operation.
func grpcItemError(ctx context.Context, err error) *pb.Error {
	p := fault.ProblemOf(public(err), "")
	if p.Status == http.StatusInternalServerError {
		slog.ErrorContext(ctx, "operation failed", "error", err)
	}
	return &pb.Error{Code: string(p.Code), Detail: p.Detail, Retryable: p.Retryable, RetryAfterMs: uint64(fault.RetryAfterOf(err).Milliseconds())}
}

// received is why a message could not be received.
func received(err error) error {
	switch status.Code(err) {
	case codes.OK:
		return nil
	case codes.ResourceExhausted:
		return fault.New(fault.TooLarge, "the message is larger than %d bytes", v1.MaxBody)
	case codes.Canceled, codes.DeadlineExceeded:
		return err
	}
	return fault.New(fault.BadRequest, "the message is missing, or is not of this method's type")
}
