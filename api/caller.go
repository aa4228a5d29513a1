package api

import (
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/auth"
)

// identify returns who makes a request, if it may call from where it does. The caller is
// there beside an error where it is known and not let in all the same.
func (s *server) identify(r *http.Request) (*auth.Caller, error) {
	apps, err := s.cfg.Service.Apps()
	if err != nil {
		return nil, err
	}
	if err := checkCredentials(r); err != nil {
		return nil, err
	}
	from := s.clientAddr(r)
	var caller *auth.Caller
	if compact, ok := bearerToken(r); ok {
		caller, err = s.bearer(r, apps, compact)
	} else if appKey, secret, ok := r.BasicAuth(); ok {
		caller, err = apps.Authenticate(appKey, secret, from)
	} else {
		s.cfg.Metrics.authFailure("missing")
		return nil, fault.New(fault.Unauthorized, "no credentials; send the AppKey and AppSecret as HTTP Basic authentication, or a token as Authorization: Bearer")
	}
	if err != nil {
		code := fault.CodeOf(err)
		s.cfg.Metrics.authFailure(string(code))
		slog.WarnContext(r.Context(), "authentication failed", "code", string(code), "address", from, "path", r.URL.Path)
	}
	return caller, err
}

// clientAddr returns the address that the request came from: that of the
// connection, or, behind trusted proxies, the last one that none of them wrote.
func (s *server) clientAddr(r *http.Request) netip.Addr {
	peer := remoteAddr(r.RemoteAddr)
	if !s.trusts(peer) {
		return peer
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		addr, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			return peer // not what a proxy writes: believe nothing of it
		}
		if peer = addr.Unmap(); !s.trusts(peer) {
			return peer
		}
	}
	return peer
}

func (s *server) trusts(addr netip.Addr) bool {
	return slices.ContainsFunc(s.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(addr) })
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
