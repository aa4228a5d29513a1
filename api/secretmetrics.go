package api

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trikey/trikey/kms"
)

// secretExpiry reports trikey_app_secret_expires_timestamp_seconds of the secrets that
// have an end.
type secretExpiry struct {
	service *kms.Service
	at      *prometheus.Desc
}

// WatchSecrets adds the ends of AppSecrets to the metrics.
func (m *Metrics) WatchSecrets(service *kms.Service) {
	m.registry.MustRegister(secretExpiry{service, prometheus.NewDesc("trikey_app_secret_expires_timestamp_seconds",
		"When a secret of an app expires, in Unix time; secrets without an end are not here.", []string{"app", "secret"}, nil)})
}

// Describe implements prometheus.Collector.
func (c secretExpiry) Describe(out chan<- *prometheus.Desc) { out <- c.at }

// Collect implements prometheus.Collector.
func (c secretExpiry) Collect(out chan<- prometheus.Metric) {
	for _, s := range c.service.SecretExpiries() {
		out <- prometheus.MustNewConstMetric(c.at, prometheus.GaugeValue, float64(s.Expires.Unix()), s.App, strconv.FormatUint(uint64(s.Number), 10))
	}
}
