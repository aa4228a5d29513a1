package api

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/audit"
)

// Metrics counts what the data plane does. It never has the name of a key, a
// conversation or a user; an app's name is as near as it comes to anybody.
type Metrics struct {
	registry     *prometheus.Registry
	requests     *prometheus.CounterVec
	duration     *prometheus.HistogramVec
	items        *prometheus.CounterVec
	streamed     *prometheus.CounterVec
	authFailures *prometheus.CounterVec
}

// NewMetrics returns the metrics of a service whose machine status tells of.
func NewMetrics(status func(context.Context) (hsm.Status, error)) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trikey_requests_total", Help: "Requests of the data plane, by operation, outcome (ok or the error's code) and app.",
		}, []string{"op", "code", "app"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "trikey_request_duration_seconds", Help: "Time from a request's header to its answer, a stream's to its end.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1},
		}, []string{"op"}),
		items: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trikey_items_total", Help: "Single operations: a batch counts each of its items, a stream its segments.",
		}, []string{"op"}),
		streamed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trikey_stream_bytes_total", Help: "Plaintext that streams carried, in bytes.",
		}, []string{"op"}),
		authFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trikey_auth_failures_total", Help: "Requests that were refused before their operation, by reason.",
		}, []string{"reason"}),
	}
	m.registry.MustRegister(
		m.requests, m.duration, m.items, m.streamed, m.authFailures,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	registerState(m.registry, status)
	return m
}

// registerState has a registry tell the state of a machine.
func registerState(registry *prometheus.Registry, status func(context.Context) (hsm.Status, error)) {
	gauge := func(name, help string, value func(hsm.Status, error) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			return value(status(context.Background()))
		})
	}
	registry.MustRegister(
		gauge("trikey_sealed", "1 while the machine is not open.", func(s hsm.Status, err error) float64 { return b2f(err != nil || s.State != hsm.Open) }),
		gauge("trikey_unseal_progress", "Key cards given in the unsealing under way.", func(s hsm.Status, _ error) float64 { return float64(s.Have) }),
		gauge("trikey_machine_up", "1 while the machine answers.", func(_ hsm.Status, err error) float64 { return b2f(err == nil) }),
	)
}

func b2f(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (m *Metrics) observe(op string, err error, r *request, took time.Duration) {
	code, app := "ok", ""
	if err != nil {
		code = string(fault.CodeOf(err))
	}
	if r.caller != nil {
		app = r.caller.Name
	}
	m.requests.WithLabelValues(op, code, app).Inc()
	m.duration.WithLabelValues(op).Observe(took.Seconds())
	m.items.WithLabelValues(op).Add(float64(r.items))
	if r.bytes > 0 {
		m.streamed.WithLabelValues(op).Add(float64(r.bytes))
	}
}

func (m *Metrics) authFailure(reason string) { m.authFailures.WithLabelValues(reason).Inc() }

// NewOps returns the handler of the ops listener: /livez, /readyz and /metrics.
func NewOps(service *kms.Service, m *Metrics, log *audit.Log) http.Handler {
	m.registry.MustRegister(auditCollector{log})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		jsonhttp.Write(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		err := log.Ready()
		if err == nil {
			err = service.Ready(r.Context())
		}
		if err != nil {
			if !fault.CodeOf(err).Retryable() {
				err = fault.New(fault.Unavailable, "%v", err)
			}
			jsonhttp.Error(w, r, err)
			return
		}
		if err := service.Degraded(); err != nil {
			// Calls are answered: a balancer that took this node out would only have fewer.
			jsonhttp.Write(w, http.StatusOK, map[string]string{"status": "degraded", "store": err.Error()})
			return
		}
		jsonhttp.Write(w, http.StatusOK, map[string]string{"status": "ready"})
	})
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "trikey_store_up", Help: "1 while the key store answers; 0 while calls are served from memory and changes are refused.",
	}, func() float64 { return b2f(service.Degraded() == nil) }))
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	return mux
}
