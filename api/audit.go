package api

import (
	"bytes"
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/prometheus/client_golang/prometheus"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/audit"
)

// recorder is a ResponseWriter that records its request before the first byte of the
// answer goes out. Where that fails nothing goes out by it.
type recorder struct {
	http.ResponseWriter
	record func() error
	done   bool
	failed error
}

func (w *recorder) before() bool {
	if !w.done {
		w.done = true
		w.failed = w.record()
	}
	return w.failed == nil
}

// WriteHeader is that of http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	if w.before() {
		w.ResponseWriter.WriteHeader(status)
	}
}

// Write is that of http.ResponseWriter.
func (w *recorder) Write(b []byte) (int, error) {
	if !w.before() {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// group is what the operations of one event have in common.
type group struct {
	key, version, toKey, toVersion uint32
	outcome                        string
}

// record records what a request has done, as one event for each key, version and
// outcome. err is that of the request as a whole.
func (s *server) record(op string, r *request, err error) error {
	event := audit.Event{Kind: audit.Data, Op: op, Address: s.clientAddr(r.Request).String()}
	if r.app != nil {
		event.Actor = r.app.Name
	}
	switch {
	case len(r.calls) == 0:
		event.Items, event.Outcome = r.items, audit.Outcome(err)
		return s.cfg.Audit.Operation(event)
	case len(r.calls) == 1:
		s.describe(&r.calls[0]).fill(&event)
		event.Items = 1
		return s.cfg.Audit.Operation(event)
	}
	at := make(map[group]int, 4)
	var events []audit.Event
	for i := range r.calls {
		g := s.describe(&r.calls[i])
		j, known := at[g]
		if !known {
			j = len(events)
			at[g] = j
			events = append(events, event)
			g.fill(&events[j])
		}
		events[j].Items++
	}
	return s.cfg.Audit.Operation(events...)
}

func (g group) fill(e *audit.Event) {
	e.Key, e.Version, e.ToKey, e.ToVersion, e.Outcome = g.key, g.version, g.toKey, g.toVersion, g.outcome
}

// describe names the keys of a call. What a caller wrote where the name of a key belongs
// is never repeated: it may be anything.
func (s *server) describe(c *kms.Call) group {
	g := group{key: c.KeyIndex, version: c.KeyVersion, outcome: audit.Outcome(c.Err)}
	if c.FromIndex != 0 {
		g.key, g.version = c.FromIndex, c.FromVersion
		if c.KeyIndex != c.FromIndex || c.KeyVersion != c.FromVersion {
			g.toKey, g.toVersion = c.KeyIndex, c.KeyVersion
		}
	}
	if g.key == 0 && c.Key != "" {
		if n, err := strconv.ParseUint(c.Key, 10, 32); err == nil {
			g.key = uint32(n)
		} else if k, err := s.cfg.Service.FindKey(c.Key); err == nil {
			g.key = k.Index
		}
	}
	return g
}

// appKeyForm is what an AppKey looks like. Anything else that was given as one may be a
// secret in the wrong place.
var appKeyForm = regexp.MustCompile(`^ak[a-z2-7]{16}$`)

// recordFailure records that a caller was not let in, and returns why. That the machine
// is sealed is nobody's failure to authenticate.
func (s *server) recordFailure(op string, r *request, err error) error {
	code := fault.CodeOf(err)
	if code == fault.Sealed || code == fault.Unavailable {
		return err
	}
	e := audit.Event{Op: op, Address: s.clientAddr(r.Request).String(), Outcome: string(code)}
	if r.app != nil {
		e.Actor = r.app.Name
	} else if claimed, _, ok := r.BasicAuth(); ok && appKeyForm.MatchString(claimed) {
		e.Actor = claimed
	}
	if failed := s.cfg.Audit.Failure(e); failed != nil {
		return failed
	}
	return err
}

// managed records every change that is asked for over the admin API before its handler
// sees it, and how it ended; the answer carries the receipt of that. What only reads is
// not recorded.
func managed(log *audit.Log) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet || r.Method == http.MethodHead || log == nil {
				next.ServeHTTP(w, r)
				return
			}
			body := jsonhttp.Buffer()
			defer jsonhttp.Release(body)
			if err := jsonhttp.ReadBody(w, r, maxAdminBody, body); err != nil {
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
	if c := chi.RouteContext(r.Context()); c != nil && c.Routes != nil && c.Routes.Match(route, r.Method, r.URL.Path) {
		return route.RoutePattern()
	}
	return "unknown"
}

func addressOf(r *http.Request) string {
	if addr := remoteAddr(r.RemoteAddr); addr.IsValid() {
		return addr.String()
	}
	return ""
}

// told are the members of requests that are recorded. Any other may be a secret.
var told = map[string]bool{
	"index": true, "name": true, "algorithm": true, "allow_ip": true, "deny_ip": true, "grants": true, "grant": true, "revoke": true, "disabled": true,
}

// details is what a request asks for: what its path names, and what may be told of its
// body.
func details(r *http.Request, body []byte) map[string]string {
	out := map[string]string{}
	route := chi.NewRouteContext()
	if c := chi.RouteContext(r.Context()); c != nil && c.Routes != nil && c.Routes.Match(route, r.Method, r.URL.Path) {
		for i, name := range route.URLParams.Keys {
			out[name] = clip(route.URLParams.Values[i])
		}
	}
	var in map[string]jsontext.Value
	if json.Unmarshal(body, &in) == nil {
		for name, value := range in {
			if told[name] {
				out[name] = clip(strings.Trim(string(value), `"`))
			}
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

// auditCollector tells the figures of the audit log.
type auditCollector struct{ log *audit.Log }

var (
	descBlocked  = prometheus.NewDesc("trikey_audit_blocked", "1 while the audit log cannot be written.", nil, nil)
	descEvents   = prometheus.NewDesc("trikey_audit_events_total", "Events in the audit log.", nil, nil)
	descSigned   = prometheus.NewDesc("trikey_audit_signed_events", "Of these, covered by the newest checkpoint.", nil, nil)
	descAge      = prometheus.NewDesc("trikey_audit_checkpoint_age_seconds", "Age of the newest checkpoint; it grows while nothing happens.", nil, nil)
	descSignable = prometheus.NewDesc("trikey_audit_signing_failed", "1 while no checkpoint can be made.", nil, nil)
	descWaiting  = prometheus.NewDesc("trikey_audit_waiting", "Calls that wait to be recorded.", nil, nil)
	descLost     = prometheus.NewDesc("trikey_audit_lost_total", "Events that could not be recorded (audit.on_failure: open).", nil, nil)
	descSyncs    = prometheus.NewDesc("trikey_audit_syncs_total", "Times that the disk was waited for: events per sync is the size of a group.", nil, nil)
	descShipped  = prometheus.NewDesc("trikey_audit_shipped_events", "Events covered by the newest checkpoint that a sink has.", []string{"sink"}, nil)
	descUnship   = prometheus.NewDesc("trikey_audit_ship_failures_total", "Checkpoints that a sink did not take.", []string{"sink"}, nil)
)

// Describe is that of prometheus.Collector.
func (auditCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descBlocked, descEvents, descSigned, descAge, descSignable, descWaiting, descLost, descSyncs, descShipped, descUnship} {
		ch <- d
	}
}

// Collect is that of prometheus.Collector.
func (c auditCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.log.Stats()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge(descBlocked, b2f(s.Blocked))
	counter(descEvents, float64(s.Events))
	gauge(descSigned, float64(s.Signed))
	gauge(descAge, s.Age.Seconds())
	gauge(descSignable, b2f(s.SignErr != nil))
	gauge(descWaiting, float64(s.Waiting))
	counter(descLost, float64(s.Lost))
	counter(descSyncs, float64(s.Syncs))
	for sink, x := range s.Shipped {
		gauge(descShipped, float64(x.Size), sink)
		counter(descUnship, float64(x.Failures), sink)
	}
}
