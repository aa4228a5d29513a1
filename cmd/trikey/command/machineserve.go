package command

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/api"
	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm/console"
	"github.com/trikey/trikey/hsm/remote"
	"github.com/trikey/trikey/hsm/submit"
	"github.com/trikey/trikey/internal/harden"
	"github.com/trikey/trikey/internal/unixsock"
	"github.com/trikey/trikey/kms/audit"
)

func newMachineServe(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a crypto machine apart from the services that use it",
		Long: `Run a crypto machine apart from the services that use it: machine.listen is for
services elsewhere, by mutual TLS, machine.socket for those on this host. A service names
it under machines in its own configuration.

The process has the root key's chip, the console for ceremonies on a socket of its own,
an audit log and the ops listener. It has no key store and no data API. It starts sealed;
TLS certificates are read anew when their files change, and on SIGHUP; at SIGTERM it refuses new calls, which services
then make elsewhere, and ends after those under way.`,
		Args: cobra.NoArgs,
	}
	read := configFlags(cmd, o)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := read()
		if err != nil {
			return err
		}
		return serveMachine(cmd.Context(), cfg)
	}
	return cmd
}

func serveMachine(ctx context.Context, cfg *config.Config) (err error) {
	if err := cfg.CheckApart(); err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if err := harden.Apply(); err != nil {
		return err
	}
	n, err := newMachineFor(ctx, cfg, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	consoleHandler, err := console.Handler(n.console)
	if err != nil {
		return err
	}
	metrics := api.NewMachineMetrics(n.status)
	server := newServer(n, metrics.Count)
	defer func() { err = errors.Join(err, server.Close()) }()
	s := &servers{}
	defer s.close()
	certificates, err := s.machine(cfg, server)
	if err != nil {
		return err
	}
	s.plain("ops", cfg.Ops.Listen, api.NewMachineOps(metrics, server.Connections, n.audit))
	if c := cfg.Machine.Custodians; c.Listen != "" {
		own, err := newCertificate("machine.custodians", c.Cert, c.Key)
		if err != nil {
			return err
		}
		certificates = append(certificates, own)
		s.custodians(c.Listen, own, submit.Handler(audit.WatchSubmissions(n.desk, n.audit)))
	}
	s.unix("machine", cfg.MachineSocket(), consoleHandler)
	if s.failed != nil {
		return s.failed
	}
	n.recordService("start", map[string]string{"version": version, "apart": "true"})
	defer n.recordService("stop", nil)
	n.startWarm(ctx, cfg)
	status, err := n.desk.Status(ctx)
	if err != nil {
		return err
	}
	slog.Info("the crypto machine is running", "version", version, "state", status.State, "listen", cfg.Machine.Listen, "socket", cfg.Machine.Socket,
		"ops", cfg.Ops.Listen, "chip", status.Chip, "memory", status.Memory)
	return s.run(ctx, &reloader{running: cfg, certificates: certificates})
}

// machine adds the listeners of a machine that runs apart, and its drain to the end.
func (s *servers) machine(cfg *config.Config, server *remote.Server) (certificates []*certificate, err error) {
	m := cfg.Machine
	add := func(what string, l net.Listener, err error, config *tls.Config) {
		if err != nil {
			s.fail(what, err)
			return
		}
		s.starts = append(s.starts, func() error { return server.Serve(l, config) })
	}
	if m.Socket != "" {
		l, err := unixsock.ListenFor(m.Socket, m.SocketUsers)
		add("services' socket", l, err, nil)
	}
	if m.Listen != "" {
		if err := remote.CheckServices(m.Services); err != nil {
			return nil, err
		}
		own, err := newCertificate("machine", m.Cert, m.Key)
		if err != nil {
			return nil, err
		}
		authorities, err := poolOf(m.ClientCA)
		if err != nil {
			return nil, err
		}
		certificates = append(certificates, own)
		l, err := net.Listen("tcp", m.Listen)
		add("services", l, err, remote.Mutual(own.config(), authorities, m.Services))
	}
	s.drain = server.Drain
	return certificates, nil
}
