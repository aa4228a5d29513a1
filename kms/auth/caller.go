package auth

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
}
