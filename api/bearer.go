package api

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/token"
)

// bearer returns the caller of a request that has a token (RFC 6750 section 2.1).
func (s *server) bearer(r *http.Request, apps *auth.Apps, from netip.Addr) (*auth.Caller, error) {
	compact, _ := bearerToken(r)
	tokens, err := s.cfg.Service.Tokens()
	if err != nil {
		return nil, err
	}
	t, err := tokens.Verify(compact)
	if err != nil {
		return nil, err
	}
	return apps.Admit(t, from)
}

// bearerToken returns the token of a request that has one.
func bearerToken(r *http.Request) (compact string, ok bool) {
	scheme, compact, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimLeft(compact, " "), strings.EqualFold(scheme, "Bearer")
}

// checkAddress refuses what no careful client sends: a token in the address, where logs
// and proxies keep it (RFC 9700 section 4.3.2).
func checkAddress(r *http.Request) error {
	if r.URL.RawQuery != "" && r.URL.Query().Has("access_token") {
		return fault.New(fault.BadRequest, "a token in the address is not taken, and may be in logs now: revoke it, and send it as Authorization: Bearer")
	}
	return nil
}

// challenge tells a caller that was not let in how it can be (RFC 9110 section 11.6.1).
func challenge(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("WWW-Authenticate", `Basic realm="trikey", charset="UTF-8"`)
	if _, ok := bearerToken(r); ok {
		h.Add("WWW-Authenticate", `Bearer realm="trikey", error="invalid_token"`)
	} else {
		h.Add("WWW-Authenticate", `Bearer realm="trikey"`)
	}
}

// Who may use an operation of the data plane. An app that shows its own credentials may
// use each.
var (
	onlyApps = []token.Class{token.App}
	noToken  = []token.Class{}
	anyUser  = []token.Class{token.App, token.User}
)

// classes are the classes of tokens that each operation takes. One that is not here
// takes no caller at all: a new route begins with its rule.
var classes = map[string][]token.Class{
	"encrypt": anyUser, "decrypt": anyUser, "reencrypt": anyUser, "batch_encrypt": anyUser, "batch_decrypt": anyUser, "batch_reencrypt": anyUser,
	"stream_encrypt": anyUser, "stream_decrypt": anyUser, "datakey": anyUser, "inspect": anyUser, "key": anyUser,
	"sign": onlyApps, "verify": onlyApps, "mac": onlyApps, "mac_verify": onlyApps, "random": onlyApps,
	opDo:         anyUser, // and each operation of it as by itself
	"token_user": onlyApps, "oauth_revoke": onlyApps, "oauth_introspect": onlyApps,
	"oauth_token": noToken, // a token that made tokens would never expire
}

// permit refuses a caller whose token is of a class that does not belong there.
func permit(op string, c *auth.Caller) error {
	allowed, known := classes[op]
	switch {
	case !known:
		return fault.New(fault.Forbidden, "nobody may do %s", op)
	case c.Token == nil || slices.Contains(allowed, c.Token.Class):
		return nil
	case len(allowed) == 0:
		return fault.New(fault.Forbidden, "no token is taken here; show the AppKey and AppSecret")
	}
	return c.Token.Require(allowed...)
}
