package command

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"time"

	"github.com/trikey/trikey/api"
	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/pool"
	"github.com/trikey/trikey/hsm/remote"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/audit"
	"github.com/trikey/trikey/kms/identity"
	"github.com/trikey/trikey/kms/record"
	"github.com/trikey/trikey/kms/token"
)

// followEvery is how often a service looks whether the machines that run apart are open.
const followEvery = 250 * time.Millisecond

// openApart builds a service whose crypto machines run apart: it has neither chip nor
// console.
func (n *node) openApart(ctx context.Context, cfg *config.Config, tokens token.Config, g *gate) (err error) {
	if err := n.takeDir(cfg); err != nil {
		return err
	}
	if n.store, err = openStore(ctx, cfg.Store, cfg.StoreFile()); err != nil {
		return err
	}
	if n.pool, err = newPool(cfg, func(ctx context.Context) (hsm.ID, error) { return record.RootOf(ctx, n.store) }); err != nil {
		return err
	}
	if err := n.pool.SetMembers(ctx, cfg.Machines); err != nil {
		return err
	}
	n.machine = n.pool
	if n.signer, err = identity.Open(ctx, n.pool, cfg.Data, slog.Default()); err != nil {
		return err
	}
	n.newService(tokens, g)
	return n.openAudit(ctx, cfg)
}

// newPool returns a pool for the machines of a configuration, without any yet.
func newPool(cfg *config.Config, root func(context.Context) (hsm.ID, error)) (*pool.Pool, error) {
	var link *tls.Config
	if cfg.Link.Cert != "" {
		own, err := newCertificate("link", cfg.Link.Cert, cfg.Link.Key)
		if err != nil {
			return nil, err
		}
		authorities, err := poolOf(cfg.Link.CA)
		if err != nil {
			return nil, err
		}
		link = &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: authorities,
			// A certificate that was renewed is used by the next connection.
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if err := own.load(); err != nil {
					slog.Error("the TLS certificate was not replaced", "section", own.section, "error", err)
				}
				return own.current.Load(), nil
			},
		}
	}
	return pool.New(pool.Config{Root: root, Log: slog.Default(), Dial: func(address, host string) (hsm.Machine, error) {
		c := remote.Config{Address: address}
		if link != nil {
			c.TLS = link.Clone()
			c.TLS.ServerName = host
		}
		return remote.Dial(c)
	}}), nil
}

// machines tells how each machine that runs apart is, for the metrics.
func (n *node) machines() []api.MachineState {
	var all []api.MachineState
	for _, m := range n.pool.Members() {
		all = append(all, api.MachineState{Address: m.Address, Up: m.Up, Calls: m.Calls})
	}
	return all
}

// changeMachines goes on with the machines that a configuration names.
func (n *node) changeMachines(ctx context.Context, cfg *config.Config) error {
	if len(cfg.Machines) == 0 {
		return fault.New(fault.BadConfig, "machines: empty now; a service that runs without does not change over to a machine of its own: start it again")
	}
	if err := n.pool.SetMembers(ctx, cfg.Machines); err != nil {
		return err
	}
	slog.Info("the crypto machines are as the configuration names them", "machines", cfg.Machines)
	return nil
}

// followMachines has the service load and unload as the machines are found, until the node
// is closed.
func (n *node) followMachines() {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.service.FollowMachine(ctx, followEvery)
	}()
	n.follow = func() { stop(); <-done }
}

// status tells how the machine is that this node uses.
func (n *node) status(ctx context.Context) (hsm.Status, error) {
	if n.desk != nil {
		return n.desk.Status(ctx)
	}
	return n.machine.Status(ctx)
}

// served is a machine as services elsewhere see it: the engine works, and the desk knows
// what state it is in.
type served struct {
	hsm.Engine
	node *node
}

// Status is that of hsm.Machine.
func (s served) Status(ctx context.Context) (hsm.Status, error) { return s.node.status(ctx) }

// importing is served where the engine takes keys in.
type importing struct {
	served
	hsm.Importer
}

// newServer returns what lets services use a node's machine.
func newServer(n *node, done func(operations int, err error)) *remote.Server {
	var m hsm.Machine = served{n.engine, n}
	if i, ok := n.engine.(hsm.Importer); ok {
		m = importing{served{n.engine, n}, i}
	}
	return remote.NewServer(remote.ServerConfig{Machine: m, Done: done, Log: slog.Default()})
}

// adopt makes a record that another machine has exported this one's, and has that recorded.
func (n *node) adopt(ctx context.Context, r hsm.Record, kcv string) error {
	m, err := n.audit.Begin(ctx, audit.Event{Kind: audit.Console, Op: "adopt", Details: map[string]string{
		"machine": r.MachineID.String(), "split": r.SplitID.String(), "kcv": r.KCV,
	}})
	if err != nil {
		return err
	}
	err = n.desk.Adopt(ctx, r, kcv)
	return errors.Join(err, m.End(audit.Outcome(err), nil))
}
