package command

import (
	"crypto/x509"
	"net"
	"sync/atomic"

	"github.com/trikey/trikey/api"
	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/alert"
	"github.com/trikey/trikey/kms/guard"
	"github.com/trikey/trikey/kms/limit"
	"github.com/trikey/trikey/kms/lockout"
)

// gate is what stands before the data plane, and can be changed while it is served.
type gate struct {
	guard       *guard.Guard
	proxies     *api.Proxies
	unusualRate atomic.Int64
	connections atomic.Int64
}

func newGate(cfg *config.Config) (*gate, error) {
	g := &gate{
		guard:   &guard.Guard{Limits: limit.New(limit.Config{}), Lockout: lockout.New(lockout.Config{}), Alerts: alert.New(alert.Config{})},
		proxies: api.NewProxies(nil),
	}
	apply, err := g.prepare(cfg)
	if err != nil {
		g.close()
		return nil, err
	}
	apply()
	return g, nil
}

// reloadable are the keys of the configuration that prepare takes; the certificates are
// read by themselves.
var reloadable = map[config.Key]bool{
	"limits.app": true, "limits.address": true, "limits.key": true, "limits.connections": true, "api.trusted_proxies": true,
	"alerts.failures": true, "alerts.rate": true, "alerts.webhook.url": true, "alerts.webhook.ca": true, "alerts.webhook.secret_file": true,
}

// prepare reads all that a configuration says of the gate, and returns what puts it in
// force: a configuration with a fault changes nothing.
func (g *gate) prepare(cfg *config.Config) (apply func(), err error) {
	var rates limit.Rates
	for _, r := range []struct {
		key, text string
		into      *limit.Rate
	}{{"app", cfg.Limits.App, &rates.App}, {"address", cfg.Limits.Address, &rates.Address}, {"key", cfg.Limits.Key, &rates.Key}} {
		if *r.into, err = limit.ParseRate(r.text); err != nil {
			return nil, fault.Wrap(fault.BadConfig, err, "limits.%s", r.key)
		}
	}
	if cfg.Limits.Connections < 0 {
		return nil, fault.New(fault.BadConfig, "limits.connections: less than 0")
	}
	webhook, err := newWebhook(cfg.Alerts.Webhook)
	if err != nil {
		return nil, err
	}
	return func() {
		g.guard.Limits.Set(rates)
		g.guard.Alerts.SetWebhook(webhook)
		g.guard.Alerts.SetBurst(cfg.Alerts.Failures)
		g.proxies.Set(cfg.API.TrustedProxies)
		g.unusualRate.Store(int64(cfg.Alerts.Rate))
		g.connections.Store(int64(cfg.Limits.Connections))
	}, nil
}

// newWebhook returns the webhook of a configuration, nil when it has none.
func newWebhook(c config.Webhook) (*alert.Webhook, error) {
	if c.URL == "" {
		return nil, nil
	}
	var roots *x509.CertPool
	if c.CA != "" {
		var err error
		if roots, err = poolOf(c.CA); err != nil {
			return nil, fault.Wrap(fault.CodeOf(err), err, "alerts.webhook.ca")
		}
	}
	text, err := readSecretFile(c.SecretFile)
	if err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "alerts.webhook.secret_file")
	}
	defer text.Wipe()
	return alert.NewWebhook(c.URL, roots, text)
}

// perAddress bounds the connections of a listener.
func (g *gate) perAddress(l net.Listener) net.Listener {
	return newPerAddress(l, func() int { return int(g.connections.Load()) }, g.proxies.Trusts)
}

func (g *gate) close() { g.guard.Alerts.Close() }
