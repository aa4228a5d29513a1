package api

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trikey/trikey/kms"
)

// keyUse reports trikey_key_version_operations_total: of the key versions that this
// process has used, so that a million keys which nobody calls for cost nothing.
type keyUse struct {
	service *kms.Service
	total   *prometheus.Desc
}

// CountKeys adds the operations of key versions to the metrics.
func (m *Metrics) CountKeys(service *kms.Service) {
	m.registry.MustRegister(keyUse{service, prometheus.NewDesc("trikey_key_version_operations_total",
		"What key versions did in this process, by key index, version and operation (seal or open).", []string{"key", "version", "op"}, nil)})
}

// Describe implements prometheus.Collector.
func (c keyUse) Describe(out chan<- *prometheus.Desc) { out <- c.total }

// Collect implements prometheus.Collector.
func (c keyUse) Collect(out chan<- prometheus.Metric) {
	c.service.Uses(func(u kms.Use) {
		key, version := strconv.FormatUint(uint64(u.Key), 10), strconv.FormatUint(uint64(u.Version), 10)
		for op, n := range map[string]uint64{"seal": u.Seals, "open": u.Opens} {
			out <- prometheus.MustNewConstMetric(c.total, prometheus.CounterValue, float64(n), key, version, op)
		}
	})
}
