package v1

// ErrorDomain is the domain of the google.rpc.ErrorInfo in the errors of gRPC. Its reason
// is a code of package fault.
const ErrorDomain = "trikey"
