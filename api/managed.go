package api

import (
	"bytes"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms/audit"
)

// managed records every change that is asked for over the admin API before its handler
// sees it, and how it ended; the answer carries the receipt of that. What only reads is
// not recorded.
func managed(log *audit.Log) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			reads := r.Method == http.MethodGet || r.Method == http.MethodHead
			rule := accesses[r.Method+" "+routeOf(r)]
			if reads || log == nil || rule.open || rule.streams { // who logs in, and what streams, is recorded apart
				next.ServeHTTP(w, r)
				return
			}
			body := jsonhttp.Buffer()
			defer jsonhttp.Release(body)
			if err := jsonhttp.ReadBody(w, r, maxCensusBody, body); err != nil {
				jsonhttp.Error(w, r, err)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body.Bytes()))
			op, err := log.Begin(r.Context(), audit.Event{
				Kind: audit.Admin, Op: r.Method + " " + routeOf(r), Address: addressOf(r), Details: details(r, body.Bytes()),
			})
			if err != nil {
				jsonhttp.Error(w, r, err)
				return
			}
			answer := &answer{ResponseWriter: w, body: jsonhttp.Buffer(), status: http.StatusOK}
			defer jsonhttp.Release(answer.body) // some have secrets
			next.ServeHTTP(answer, r)
			if err := op.End(answer.outcome(), nil); err == nil {
				receipt(r, w, op)
			}
			w.WriteHeader(answer.status)
			_, _ = w.Write(answer.body.Bytes()) // a client that went away is no failure of ours
		})
	}
}

// routeOf is the path as the service knows it.
func routeOf(r *http.Request) string {
	route := chi.NewRouteContext()
	if c := chi.RouteContext(r.Context()); c != nil && c.Routes != nil && c.Routes.Match(route, r.Method, pathOf(r)) {
		return route.RoutePattern()
	}
	return noRoute
}

// pathOf is the path that the router goes by. What looks for a route goes by the same, or a
// path with an escaped slash would be one route here and another there.
func pathOf(r *http.Request) string {
	if r.URL.RawPath != "" {
		return r.URL.RawPath
	}
	return r.URL.Path
}

// noRoute stands for a path that the service does not have.
const noRoute = "unknown"

func addressOf(r *http.Request) string {
	if addr := remoteAddr(r.RemoteAddr); addr.IsValid() {
		return addr.String()
	}
	return ""
}

// told are the members of requests that are recorded. Any other may be a secret.
var told = map[string]bool{
	"index": true, "name": true, "algorithm": true, "allow_ip": true, "deny_ip": true, "grants": true, "grant": true, "revoke": true, "disabled": true,
	"role": true, "app": true, "range": true, "remove": true, "owner": true, "why": true, "days": true, "version": true, "rotate": true, "rotate_after": true,
	"retain": true, "require_context": true, "strict_context": true, "pre_active": true, "limit": true, "budget": true, "purpose": true, "exportable": true,
	"publish": true, "user": true, "person": true, "id": true, "expires": true, "spki": true, "count": true, "even_if_used": true, "confirm": true,
}

// details is what a request asks for: what its path names, and what may be told of its
// body.
func details(r *http.Request, body []byte) map[string]string {
	out := map[string]string{}
	route := chi.NewRouteContext()
	if c := chi.RouteContext(r.Context()); c != nil && c.Routes != nil && c.Routes.Match(route, r.Method, pathOf(r)) {
		for i, name := range route.URLParams.Keys {
			out[name] = clip(route.URLParams.Values[i])
		}
	}
	if g := grantOf(r.Context()); g != nil {
		out["approval"], out["approved_by"] = g.id, g.approver
	}
	var in map[string]jsontext.Value
	if json.Unmarshal(body, &in) == nil {
		for name, value := range in {
			if told[name] {
				out[name] = clip(strings.Trim(string(value), `"`))
			}
		}
		if to, err := receiverIn(in["to_key"]); err == nil {
			out["receiver"] = to
		}
	}
	return out
}

// clip bounds a value.
func clip(s string) string {
	const most = 1000
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.ToValidUTF8(s, "")
}

// answer keeps an answer back until its receipt is there.
type answer struct {
	http.ResponseWriter
	body   *bytes.Buffer
	status int
}

// WriteHeader is that of http.ResponseWriter.
func (a *answer) WriteHeader(status int) { a.status = status }

// Write is that of http.ResponseWriter.
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

func (a *answer) outcome() string {
	if a.status == http.StatusAccepted {
		return outcomeWaits
	}
	if a.status < http.StatusBadRequest {
		return audit.OK
	}
	var p fault.Problem
	if json.Unmarshal(a.body.Bytes(), &p) != nil || p.Code == "" {
		return string(fault.Internal)
	}
	return string(p.Code)
}

func receipt(r *http.Request, w http.ResponseWriter, op *audit.Managed) {
	proof, err := op.Receipt(r.Context())
	if err != nil {
		slog.ErrorContext(r.Context(), "no receipt could be made of a change that was made and recorded", "error", err)
		return
	}
	w.Header().Set(v1.HeaderReceipt, base64.StdEncoding.EncodeToString(proof.Marshal()))
}
