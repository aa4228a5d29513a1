// Package api is Trikey's way in: the data plane over HTTPS (New) and gRPC (NewGRPC) for
// IM services, the management socket for the command line (NewAdmin), and the ops listener
// (NewOps). docs/api.md describes them all for their users.
//
// Every data route but the published key set and metadata goes through server.route, and every method of
// gRPC through grpcServer.serve: they answer for the machine being open, the caller being
// known, and its address being allowed, before the request's body is read.
package api

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/go-chi/chi/v5"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/audit"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/guard"
)

// Config is what the listeners need.
type Config struct {
	Service *kms.Service
	Metrics *Metrics

	// TrustedProxies are the addresses whose X-Forwarded-For is believed. From
	// any other the header is ignored.
	TrustedProxies *Proxies

	Guard *guard.Guard // nil lets everybody on

	Audit *audit.Log // nil records nothing

	Now func() time.Time // time.Now when nil
}

type server struct {
	cfg Config
}

func (s *server) now() time.Time {
	if s.cfg.Now == nil {
		return time.Now()
	}
	return s.cfg.Now()
}

// New returns the handler of the data plane.
func New(cfg Config) http.Handler {
	s := &server{cfg}
	r := chi.NewRouter()
	r.Use(onTheWire)
	r.NotFound(noSuchPath)
	r.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		jsonhttp.Error(w, r, fault.New(fault.MethodNotAllowed, "%s does not take %s", r.URL.Path, r.Method))
	})
	r.Post("/v1/keys/{key}/encrypt", s.route("encrypt", s.encrypt))
	r.Post("/v1/keys/{key}/decrypt", s.route("decrypt", s.decrypt))
	r.Post("/v1/reencrypt", s.route("reencrypt", s.reencrypt))
	r.Post("/v1/batch/encrypt", s.route("batch_encrypt", s.batchEncrypt))
	r.Post("/v1/batch/decrypt", s.route("batch_decrypt", s.batchDecrypt))
	r.Post("/v1/batch/reencrypt", s.route("batch_reencrypt", s.batchReencrypt))
	r.Post("/v1/stream/{key}/encrypt", s.route("stream_encrypt", s.streamEncrypt))
	r.Post("/v1/stream/{key}/decrypt", s.route("stream_decrypt", s.streamDecrypt))
	r.Post("/v1/ciphertext/inspect", s.route("inspect", s.inspect))
	r.Post("/v1/keys/{key}/datakey", s.route("datakey", s.dataKey))
	r.Post("/v1/keys/{key}/sign", s.route("sign", s.sign))
	r.Post("/v1/keys/{key}/verify", s.route("verify", s.verify))
	r.Post("/v1/keys/{key}/mac", s.route("mac", s.mac))
	r.Post("/v1/keys/{key}/mac/verify", s.route("mac_verify", s.verifyMac))
	r.Get("/v1/random", s.route("random", s.random))
	r.Get("/v1/keys/{key}", s.route("key", s.key))
	r.Post("/v1/tokens/user", s.route("token_user", s.userToken))
	r.Post("/oauth2/token", s.oauth("oauth_token", s.issueToken))
	r.Post("/oauth2/revoke", s.oauth("oauth_revoke", s.revokeToken))
	r.Post("/oauth2/introspect", s.oauth("oauth_introspect", s.introspect))
	r.Get("/.well-known/oauth-authorization-server", s.metadata)
	r.Get("/.well-known/jwks.json", s.keySet)
	return r
}

// request is one authenticated request. One that came over gRPC has an http.Request too,
// made of its metadata: that is what callers are recognised by.
type request struct {
	*http.Request
	ref     string              // gRPC: the key that the message names
	w       http.ResponseWriter // records the request in the audit before it answers
	in      http.ResponseWriter // the connection's own, for reading the body
	from    netip.Addr          // where it comes from
	caller  *auth.Caller        // nil before it is known
	items   int                 // operations done, for the metrics
	calls   []kms.Call          // what was done, for the audit
	details map[string]string   // of a token that was issued, for the audit
	begun   bool                // the answer has begun: an error can no longer be one
	bytes   int64               // of plaintext that a stream carried, for the metrics
}

// key returns the reference in the request's path or message.
func (r *request) key() string {
	if r.ref != "" {
		return r.ref
	}
	raw := chi.URLParam(r.Request, "key")
	if plain, err := url.PathUnescape(raw); err == nil {
		return plain
	}
	return raw
}

func (r *request) answer(value any) error {
	jsonhttp.Write(r.w, http.StatusOK, value)
	return nil
}

func (r *request) decode(into any) error { return jsonhttp.Decode(r.in, r.Request, v1.MaxBody, into) }

// route wraps a route of the data plane.
func (s *server) route(op string, serve func(*request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		req := &request{Request: r, w: w, in: w}
		err := s.audited(op, req, serve)
		if err != nil && !req.begun {
			if fault.CodeOf(err).Status() == http.StatusUnauthorized {
				challenge(w, r)
			}
			jsonhttp.Error(w, r, public(err))
		}
		s.cfg.Metrics.observe(op, err, req, time.Since(start))
		if err != nil && req.begun {
			req.breakOff(public(err))
		}
	}
}

// audited serves a request that is recorded before it is answered.
func (s *server) audited(op string, r *request, serve func(*request) error) error {
	if err := s.enter(op, r); err != nil {
		return err
	}
	recorder := &recorder{ResponseWriter: r.in, record: func() error { return s.record(op, r, nil) }}
	r.w = recorder
	err := serve(r)
	switch {
	case recorder.failed != nil:
		r.begun = false // nothing went out
		return recorder.failed
	case r.begun:
		if failed := s.recordEnd(op, r, err); err == nil {
			err = failed
		}
	case err != nil && !recorder.done:
		if failed := s.record(op, r, err); failed != nil {
			return failed
		}
	}
	return err
}

// enter lets a request in whose caller is known, may call from where it does and may do op,
// and records any other.
func (s *server) enter(op string, r *request) error {
	if err := s.cfg.Audit.Ready(); err != nil {
		return err
	}
	r.from = s.clientAddr(r.Request)
	caller, err := s.admit(r.Request, r.from)
	if caller != nil {
		r.caller = caller // of a stream, it was known before
	}
	if err == nil {
		err = permit(op, caller)
	}
	if err != nil {
		return s.recordFailure(op, r, err)
	}
	return nil
}

// public is the error that a caller sees: of a ciphertext that does not open, nothing
// more than that.
func public(err error) error {
	if errors.Is(err, fault.DecryptFailed) {
		return fault.DecryptFailed
	}
	return err
}
