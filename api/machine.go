package api

import (
	"context"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms/audit"
)

// MachineState tells how a crypto machine is that runs apart from this service.
type MachineState struct {
	Address string
	Up      bool
	Calls   int // under way
}

// machineCollector tells how the machines of a service are.
type machineCollector struct{ machines func() []MachineState }

var (
	memberUp    = prometheus.NewDesc("trikey_machine_member_up", "1 while the crypto machine at this address gets calls.", []string{"machine"}, nil)
	memberCalls = prometheus.NewDesc("trikey_machine_member_calls", "Calls under way at the crypto machine at this address.", []string{"machine"}, nil)
)

// Describe is that of prometheus.Collector.
func (machineCollector) Describe(ch chan<- *prometheus.Desc) { ch <- memberUp; ch <- memberCalls }

// Collect is that of prometheus.Collector.
func (c machineCollector) Collect(ch chan<- prometheus.Metric) {
	for _, m := range c.machines() {
		ch <- prometheus.MustNewConstMetric(memberUp, prometheus.GaugeValue, b2f(m.Up), m.Address)
		ch <- prometheus.MustNewConstMetric(memberCalls, prometheus.GaugeValue, float64(m.Calls), m.Address)
	}
}

// CountMachines has the metrics tell of the crypto machines that run apart.
func (m *Metrics) CountMachines(machines func() []MachineState) {
	m.registry.MustRegister(machineCollector{machines})
}

// MachineMetrics counts what a crypto machine does that runs apart. It knows neither keys
// nor apps.
type MachineMetrics struct {
	status     func(context.Context) (hsm.Status, error)
	registry   *prometheus.Registry
	calls      *prometheus.CounterVec
	operations prometheus.Counter
}

// NewMachineMetrics returns the metrics of a machine whose state status tells.
func NewMachineMetrics(status func(context.Context) (hsm.Status, error)) *MachineMetrics {
	m := &MachineMetrics{
		status: status, registry: prometheus.NewRegistry(),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trikey_machine_calls_total", Help: "Calls of services, by outcome (ok or the error's code).",
		}, []string{"code"}),
		operations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trikey_machine_operations_total", Help: "Operations in these calls.",
		}),
	}
	m.registry.MustRegister(m.calls, m.operations, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	registerState(m.registry, status)
	return m
}

// Count takes in that a call has ended.
func (m *MachineMetrics) Count(operations int, err error) {
	code := "ok"
	if err != nil {
		code = string(fault.CodeOf(err))
	}
	m.calls.WithLabelValues(code).Inc()
	m.operations.Add(float64(operations))
}

// NewMachineOps returns the handler of the ops listener of a machine that runs apart.
// Ready means open: a service would be answered.
func NewMachineOps(m *MachineMetrics, connections func() int, log *audit.Log) http.Handler {
	m.registry.MustRegister(auditCollector{log}, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "trikey_machine_connections", Help: "Services that are connected.",
	}, func() float64 { return float64(connections()) }))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		jsonhttp.Write(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		status, err := m.status(r.Context())
		if err == nil && status.State != hsm.Open {
			err = fault.New(fault.Sealed, "the machine is %s: its key cards must be given first (trikey machine unseal)", status.State)
		}
		if err != nil {
			jsonhttp.Error(w, r, err)
			return
		}
		jsonhttp.Write(w, http.StatusOK, map[string]string{"status": "ready"})
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	return mux
}
