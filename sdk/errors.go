package sdk

import (
	"github.com/trikey/trikey/internal/fault"
)

// Errors that calls return, to be compared with errors.Is. Each is a stable code of
// the service (docs/api.md).
var (
	ErrBadRequest          error = fault.BadRequest
	ErrTooLarge            error = fault.TooLarge
	ErrUnauthorized        error = fault.Unauthorized
	ErrForbidden           error = fault.Forbidden
	ErrIPNotAllowed        error = fault.IPNotAllowed
	ErrKeyNotFound         error = fault.KeyNotFound
	ErrAlgorithmNotAllowed error = fault.AlgorithmNotAllowed
	ErrDecryptFailed       error = fault.DecryptFailed
	ErrWrongRegion         error = fault.WrongRegion
	ErrSealed              error = fault.Sealed
	ErrUnavailable         error = fault.Unavailable
)

// Code returns the service's code of an error that a call returned, "" for nil.
// An error that did not come from a service is "internal".
func Code(err error) string { return string(fault.CodeOf(err)) }
