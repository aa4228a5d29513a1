package api

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/httpsig"
	"github.com/trikey/trikey/kms/auth"
)

// streams begins the paths whose bodies are used while they come.
const streams = "/v1/stream/"

// signed returns the app that signed a request (RFC 9421). From then on its body fails
// unless it is the one that was signed. A nonce is used up by a good signature alone.
func (s *server) signed(r *http.Request, apps *auth.Apps, from netip.Addr) (*auth.Caller, error) {
	if strings.HasPrefix(r.URL.Path, streams) {
		return nil, fault.New(fault.SignatureInvalid, "a stream is used before its end, where its digest could be checked; "+
			"call it with the AppKey and AppSecret, or with a client certificate")
	}
	signature, err := httpsig.Parse(r)
	if err != nil {
		return nil, err
	}
	if err := signature.Fresh(s.now()); err != nil {
		return nil, err
	}
	caller, err := apps.AuthenticateMAC(signature.KeyID, signature.Base, signature.MAC, from)
	if err != nil {
		return caller, err
	}
	if err := s.cfg.Service.ClaimNonce(r.Context(), signature.KeyID, signature.Nonce); err != nil {
		return caller, err
	}
	r.Body = signature.Body(r.Body)
	return caller, nil
}
