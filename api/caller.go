package api

import (
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/httpsig"
	"github.com/trikey/trikey/kms/auth"
)

// identify returns who makes a request, if it may call from where it does. The caller is
// there beside an error where it is known and not let in all the same.
func (s *server) identify(r *http.Request, from netip.Addr) (*auth.Caller, error) {
	apps, err := s.cfg.Service.Apps()
	if err != nil {
		return nil, err
	}
	if err := checkAddress(r); err != nil {
		return nil, err
	}
	method, err := presented(r)
	if err != nil {
		s.cfg.Metrics.authFailure("missing")
		return nil, err
	}
	caller, err := s.recognise(r, apps, method, from)
	if err != nil {
		code := fault.CodeOf(err)
		s.cfg.Metrics.authFailure(string(code))
		slog.WarnContext(r.Context(), "authentication failed", "code", string(code), "method", string(method), "address", from, "path", r.URL.Path)
	}
	return caller, err
}

// presented returns which kind of credential a request has. Two of them are none: which
// one counts would be for whoever stands between to choose. A client certificate belongs
// to the connection, and is the credential of requests that have none of their own.
func presented(r *http.Request) (auth.Method, error) {
	authorization := r.Header.Values("Authorization")
	signed := httpsig.Present(r)
	switch {
	case len(authorization) > 1 || len(authorization) == 1 && signed:
		return "", fault.New(fault.Unauthorized, "more than one credential; send one Authorization, or a signature, and not both")
	case signed:
		return auth.Signature, nil
	case len(authorization) == 1:
		scheme, _, _ := strings.Cut(authorization[0], " ")
		switch {
		case strings.EqualFold(scheme, "Basic"):
			return auth.Basic, nil
		case strings.EqualFold(scheme, "Bearer"):
			return auth.Bearer, nil
		}
		return "", fault.New(fault.Unauthorized, "the Authorization scheme is not one that is taken here; send the AppKey and AppSecret as HTTP Basic authentication, "+
			"or a token as Bearer")
	case certificate(r) != nil:
		return auth.Certificate, nil
	}
	return "", fault.New(fault.Unauthorized, "no credentials; send the AppKey and AppSecret as HTTP Basic authentication, or a token as Authorization: Bearer, "+
		"sign the request, or connect with a client certificate")
}

// recognise finds the app by the credential of that kind, and by no other when it fails.
func (s *server) recognise(r *http.Request, apps *auth.Apps, method auth.Method, from netip.Addr) (caller *auth.Caller, err error) {
	switch method {
	case auth.Certificate:
		return s.certified(r, apps, from)
	case auth.Signature:
		caller, err = s.signed(r, apps, from)
	case auth.Bearer:
		caller, err = s.bearer(r, apps, from)
	default:
		appKey, secret, ok := r.BasicAuth()
		if !ok {
			return nil, fault.New(fault.Unauthorized, "the Authorization is not HTTP Basic authentication (RFC 7617): base64 of AppKey:AppSecret")
		}
		caller, err = apps.Authenticate(appKey, secret, from)
	}
	if err != nil {
		return caller, err
	}
	return caller, sameApp(r, apps, caller)
}

// clientAddr returns the address that the request came from: that of the
// connection, or, behind trusted proxies, the last one that none of them wrote.
func (s *server) clientAddr(r *http.Request) netip.Addr {
	peer := remoteAddr(r.RemoteAddr)
	if !s.cfg.TrustedProxies.Trusts(peer) {
		return peer
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		addr, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			return peer // not what a proxy writes: believe nothing of it
		}
		if peer = addr.Unmap(); !s.cfg.TrustedProxies.Trusts(peer) {
			return peer
		}
	}
	return peer
}

func remoteAddr(hostPort string) netip.Addr {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap().WithZone("")
}
