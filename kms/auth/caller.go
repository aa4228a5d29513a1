package auth

import "github.com/trikey/trikey/kms/token"

// Method is a way in which a caller shows which app it is.
type Method string

// The methods.
const (
	Basic Method = "basic" // AppKey and AppSecret (RFC 7617)
)

// Caller is who makes calls of the data plane: an app, and how it was recognised.
type Caller struct {
	*App
	Method Method
	Token  *token.Token // of the method Bearer: it narrows what the app may do; nil otherwise
}
