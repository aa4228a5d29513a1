// Package fault is the one kind of error that crosses package, process and
// network borders in Trikey.
//
// A fault is a stable code, which programs compare, and a detail, which people
// read. Two faults are the same error when their codes are equal, so
//
//	errors.Is(err, fault.KeyNotFound)
//
// holds in the process where the error began, after it crossed the admin
// socket, and in a client that only saw the problem+json of it. The detail says
// what happened and what to do next; it never carries a secret.
//
// What a code means to each transport (HTTP status, exit code, whether another
// try may help) stands in one table, in code.go.
package fault

import (
	"errors"
	"fmt"
	"time"
)

// Error is a failure with a stable code.
type Error struct {
	Code   Code
	Detail string // for people: what happened, what to do next

	// RetryAfter is how long the caller is to wait before it tries again, as in the
	// header field of that name (RFC 9110, section 10.2.3); zero when nothing is known.
	RetryAfter time.Duration

	cause error
}

// New returns a fault with a detail made as by fmt.Sprintf.
func New(code Code, format string, args ...any) error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Wrap returns a fault that keeps err as its cause: errors.Is and errors.As see
// through it, and its text ends with the cause's.
func Wrap(code Code, err error, format string, args ...any) error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...), cause: err}
}

// Later returns a fault that passes by itself after some time.
func Later(code Code, after time.Duration, format string, args ...any) error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...), RetryAfter: after}
}

// RetryAfterOf returns how long to wait before the call that ended with err is tried
// again, zero when it does not say.
func RetryAfterOf(err error) time.Duration {
	if f := (*Error)(nil); errors.As(err, &f) {
		return f.RetryAfter
	}
	return 0
}

// Error returns the detail and the cause; where both are missing, the code's
// title.
func (e *Error) Error() string {
	switch {
	case e.Detail == "" && e.cause == nil:
		return e.Code.Title()
	case e.cause == nil:
		return e.Detail
	case e.Detail == "":
		return e.cause.Error()
	}
	return e.Detail + ": " + e.cause.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// Is reports whether target is the fault's code, or a fault of that code.
func (e *Error) Is(target error) bool {
	switch t := target.(type) {
	case Code:
		return e.Code == t
	case *Error:
		return e.Code == t.Code
	}
	return false
}

// CodeOf returns the code of the first fault in err's chain, and Internal for
// an error that has none. It returns "" for a nil error.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var f *Error
	if errors.As(err, &f) {
		return f.Code
	}
	var c Code
	if errors.As(err, &c) {
		return c
	}
	return Internal
}
