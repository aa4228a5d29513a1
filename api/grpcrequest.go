package api

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	grpctls "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// grpcRequest makes the http.Request of a call's metadata, by which its caller is
// recognised: POST of the method's full name at the authority, as gRPC sends it
// (gRPC over HTTP/2, Requests). It has no body.
func grpcRequest(ctx context.Context, method string) *http.Request {
	md, _ := metadata.FromIncomingContext(ctx)
	r := &http.Request{
		Method: http.MethodPost, URL: &url.URL{Scheme: "https", Path: method}, RequestURI: method,
		Proto: "HTTP/2.0", ProtoMajor: 2, Header: make(http.Header, len(md)), Body: http.NoBody,
	}
	for name, values := range md {
		switch {
		case name == ":authority" && len(values) > 0:
			r.Host, r.URL.Host = values[0], values[0]
		case strings.HasPrefix(name, ":"), strings.HasSuffix(name, "-bin"):
			// Binary values are bytes, not the text of a header.
		default:
			r.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	if p, ok := peer.FromContext(ctx); ok {
		r.RemoteAddr = p.Addr.String()
		if info, ok := p.AuthInfo.(grpctls.TLSInfo); ok {
			r.TLS = &info.State
		}
	}
	return r.WithContext(ctx)
}
