package api

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/trikey/trikey/kms/audit"
)

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
