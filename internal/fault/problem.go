package fault

import "errors"

// Problem is a fault as it crosses a wire: RFC 9457 problem details, media type
// application/problem+json. Its status and title follow from its code.
type Problem struct {
	Type      string `json:"type"` // urn:trikey:error:CODE
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Code      Code   `json:"code"`
	Detail    string `json:"detail,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	Retryable bool   `json:"retryable"`
}

// MediaType is the content type of a Problem.
const MediaType = "application/problem+json"

// ProblemOf returns err as a problem. The text of an error that is no fault is
// left out: it was written for the service's log, not for its callers.
func ProblemOf(err error, requestID string) Problem {
	code := CodeOf(err)
	p := Problem{
		Type: "urn:trikey:error:" + string(code), Title: code.Title(), Status: code.Status(),
		Code: code, RequestID: requestID, Retryable: code.Retryable(),
	}
	var f *Error
	if errors.As(err, &f) {
		p.Detail = f.Error()
	}
	return p
}

// Err returns the problem as a fault, equal by errors.Is to the one it was made
// of. A code that this release does not know is kept.
func (p Problem) Err() error {
	if p.Code == "" {
		p.Code = Internal
	}
	detail := p.Detail
	if detail == "" {
		detail = p.Title
	}
	return &Error{Code: p.Code, Detail: detail}
}
