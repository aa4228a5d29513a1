package httpsig

import (
	"net/http"
	"strings"

	"github.com/trikey/trikey/internal/fault"
)

// signatureBase returns the octets that are signed (RFC 9421, section 2.5).
func signatureBase(r *http.Request, names []string, params string) ([]byte, error) {
	b := make([]byte, 0, 512)
	for _, name := range names {
		value, err := component(r, name)
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, '"'), name...), `": `...)
		b = append(append(b, value...), '\n')
	}
	return append(append(b, `"@signature-params": `...), params...), nil
}

// component returns the value of a component (RFC 9421, sections 2.1 and 2.2).
func component(r *http.Request, name string) (string, error) {
	if !strings.HasPrefix(name, "@") {
		return field(r, name)
	}
	path, err := target(r)
	if err != nil {
		return "", err
	}
	plain, query, _ := strings.Cut(path, "?")
	switch name {
	case method:
		return r.Method, nil
	case targetURI:
		return "https://" + authority(r) + path, nil
	case "@authority":
		return authority(r), nil
	case "@scheme":
		return "https", nil
	case "@request-target":
		return path, nil
	case "@path":
		return plain, nil
	case "@query":
		return "?" + query, nil
	}
	return "", invalid("the component %q is not one that a request here can have; cover %s, %s and, with a body, %s", name, method, targetURI, digest)
}

// field returns the combined value of a field's lines (section 2.1).
func field(r *http.Request, name string) (string, error) {
	if name == "host" {
		return r.Host, nil
	}
	lines := r.Header.Values(name)
	if name != strings.ToLower(name) || len(lines) == 0 {
		return "", invalid("the signature covers the field %q, which the request has not", name)
	}
	var value strings.Builder
	for i, line := range lines {
		if i > 0 {
			value.WriteString(", ")
		}
		value.WriteString(strings.TrimSpace(line))
	}
	return value.String(), nil
}

// authority is the host that the caller asked for, and the port where it is not the
// scheme's own (section 2.2.3).
func authority(r *http.Request) string {
	host := r.Host
	if host == "" && r.URL != nil {
		host = r.URL.Host // a request on its way out
	}
	return strings.TrimSuffix(strings.ToLower(host), ":443")
}

// target is the path and query as they are on the wire.
func target(r *http.Request) (string, error) {
	path := r.RequestURI
	if path == "" { // on its way out
		path = r.URL.RequestURI()
	}
	if !strings.HasPrefix(path, "/") {
		return "", invalid("the request's target is not a path; send the request straight to the service")
	}
	return path, nil
}

func invalid(format string, args ...any) error {
	return fault.New(fault.SignatureInvalid, format, args...)
}
