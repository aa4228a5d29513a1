package api

import (
	"net/http"
	"strings"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
)

// onTheWire answers for what a request looks like before it is known what it asks for.
//
// A request with both a Content-Length and chunks is two different ones to two readers, and
// what follows it may be a request that a proxy has never seen, in whose X-Forwarded-For
// nobody but the caller has written. RFC 9112 section 6.1 has the server go by the chunks
// and close the connection. net/http takes the length out of sight, so the connection is
// closed after every request in chunks of HTTP/1.1.
func onTheWire(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TransferEncoding) > 0 {
			w.Header().Set("Connection", "close")
		}
		if strings.Contains(r.URL.EscapedPath(), "//") { // a key without a name
			noSuchPath(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func noSuchPath(w http.ResponseWriter, r *http.Request) {
	jsonhttp.Error(w, r, fault.New(fault.NotFound, "there is no %s here; docs/api.md lists what there is", r.URL.Path))
}
