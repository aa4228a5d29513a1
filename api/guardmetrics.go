package api

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trikey/trikey/kms/alert"
	"github.com/trikey/trikey/kms/guard"
)

// guardCollector reports what callers were held to, and what people were told.
type guardCollector struct{ *guard.Guard }

var (
	refusedDesc = prometheus.NewDesc("trikey_rate_limited_total", "What was refused for a rate, by whose it is: app, address or key.", []string{"by"}, nil)
	lockedDesc  = prometheus.NewDesc("trikey_lockouts_total", "How often an AppKey or an address was locked out.", nil, nil)
	raisedDesc  = prometheus.NewDesc("trikey_alerts_total", "Alerts that were told, by kind.", []string{"kind"}, nil)
	droppedDesc = prometheus.NewDesc("trikey_alerts_dropped_total", "Alerts that the webhook never got.", nil, nil)
	failedDesc  = prometheus.NewDesc("trikey_alerts_delivery_failures_total", "Deliveries to the webhook that failed.", nil, nil)
	waitingDesc = prometheus.NewDesc("trikey_alerts_waiting", "Alerts that wait for the webhook.", nil, nil)
)

// Describe implements prometheus.Collector.
func (guardCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{refusedDesc, lockedDesc, raisedDesc, droppedDesc, failedDesc, waitingDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c guardCollector) Collect(out chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	refused := c.Limits.Refused()
	count(refusedDesc, refused.App, "app")
	count(refusedDesc, refused.Address, "address")
	count(refusedDesc, refused.Key, "key")
	count(lockedDesc, c.Lockout.Locks())
	stats := c.Alerts.Stats()
	for _, kind := range alert.Kinds {
		count(raisedDesc, stats.Raised[kind], string(kind))
	}
	count(droppedDesc, stats.Dropped)
	count(failedDesc, stats.Failures)
	out <- prometheus.MustNewConstMetric(waitingDesc, prometheus.GaugeValue, float64(stats.Waiting))
}

// CountGuard adds what the guard does to the metrics.
func (m *Metrics) CountGuard(g *guard.Guard) { m.registry.MustRegister(guardCollector{g}) }

// Reloads counts how often the configuration was read anew.
type Reloads struct {
	total  *prometheus.CounterVec
	failed prometheus.Gauge
	last   prometheus.Gauge
}

// NewReloads adds the count of reloads to the metrics.
func (m *Metrics) NewReloads() *Reloads {
	r := &Reloads{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trikey_config_reload_total", Help: "How often changed configuration or certificates were read, by result: ok or failed.",
		}, []string{"result"}),
		failed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "trikey_config_reload_failed", Help: "1 while what is on the disk was refused and the configuration before it holds.",
		}),
		last: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "trikey_config_reload_success_timestamp_seconds", Help: "When the configuration that holds was read.",
		}),
	}
	r.last.SetToCurrentTime()
	m.registry.MustRegister(r.total, r.failed, r.last)
	return r
}

// Done notes how a reload ended.
func (r *Reloads) Done(err error) {
	if err != nil {
		r.total.WithLabelValues("failed").Inc()
		r.failed.Set(1)
		return
	}
	r.total.WithLabelValues("ok").Inc()
	r.failed.Set(0)
	r.last.SetToCurrentTime()
}
