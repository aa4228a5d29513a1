package command

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/api"
	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm/console"
	"github.com/trikey/trikey/hsm/submit"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/harden"
	"github.com/trikey/trikey/kms/audit"
	"github.com/trikey/trikey/kms/oidc"
)

func newServe(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the service with its crypto machine",
		Long: `Run the service, with the crypto machine in the same process, or with those that
machines of its configuration names (trikey machine serve).

It starts sealed: every call is answered with 503 "sealed" until the key cards are
given (trikey machine unseal). TLS certificates, limits, trusted proxies and alerts are
read anew when their files change, and on SIGHUP; SIGTERM ends the service after the
calls under way.

Every key of the configuration file can be given as a flag here, and in the
environment: api.listen is --api-listen and TRIKEY_API_LISTEN.`,
		Args: cobra.NoArgs,
	}
	read := configFlags(cmd, o)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := read()
		if err != nil {
			return err
		}
		return serve(cmd.Context(), cfg, config.Find(o.config), read)
	}
	return cmd
}

// configFlags gives a command every key of the configuration as a flag. It returns what
// reads the configuration with them, as often as it is called.
func configFlags(cmd *cobra.Command, o *options) func() (*config.Config, error) {
	values := map[config.Key]*string{}
	for _, k := range config.Keys() {
		values[k] = cmd.Flags().String(k.Flag(), "", k.Env())
	}
	return func() (*config.Config, error) {
		flags := map[string]string{}
		for k, v := range values {
			if cmd.Flags().Changed(k.Flag()) {
				flags[string(k)] = *v
			}
		}
		return o.load(flags)
	}
}

// gcPercent lets the heap grow to five times what lives before it is collected, unless
// GOGC says otherwise: what lives is small, and half of all processor time went into
// collecting the garbage of batches.
const gcPercent = 400

// The heap grows no further than this before it is collected, unless GOMEMLIMIT says
// otherwise: with a million keys in memory, five times what lives would be too much. Each
// key takes some 450 bytes; with many, the limit leaves room for them.
const (
	memoryLimit  = 640 << 20
	memoryBase   = 256 << 20
	memoryPerKey = 512
)

// limitMemory sets the limit for a number of keys.
func limitMemory(keys int) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(max(memoryLimit, memoryBase+int64(keys)*memoryPerKey))
	}
}

// serve runs the service of a configuration, which was read from path by read.
func serve(ctx context.Context, cfg *config.Config, path string, read func() (*config.Config, error)) (err error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	limitMemory(0)
	if err := harden.Apply(); err != nil {
		return err
	}
	g, err := newGate(cfg)
	if err != nil {
		return err
	}
	defer g.close()
	n, err := newNode(ctx, cfg, g)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	certs, err := newCertificates(cfg)
	if err != nil {
		return err
	}
	metrics := api.NewMetrics(n.status)
	metrics.CountKeys(n.service)
	metrics.WatchBackups(n.service, failpoint.Now)
	metrics.WatchSecrets(n.service)
	metrics.CountGuard(g.guard)
	clients, err := withClients(certs.api.config(), cfg.API.ClientCA)
	if err != nil {
		return err
	}
	s := &servers{}
	defer s.close()
	if n.pool != nil {
		metrics.CountMachines(n.machines)
	} else if err := n.consoles(s, cfg, certs.custodians); err != nil {
		return err
	}
	data := api.Config{Service: n.service, Metrics: metrics, TrustedProxies: g.proxies, Guard: g.guard, Audit: n.audit}
	s.tls("api", cfg.API.Listen, clients, api.New(data), g.perAddress)
	if err := s.grpc(cfg, certs.grpc, data, g.perAddress); err != nil {
		return err
	}
	s.plain("ops", cfg.Ops.Listen, api.NewOps(n.service, metrics, n.audit))
	provider, err := newOIDC(cfg.Admin.OIDC)
	if err != nil {
		return err
	}
	if provider != nil {
		defer func() { err = errors.Join(err, provider.Close()) }()
	}
	n.doors(s, cfg.Admin, cfg.AdminSocket(), certs.admin, g, provider)
	if s.failed != nil {
		return s.failed
	}
	n.recordService("start", map[string]string{"version": version})
	defer n.recordService("stop", nil)
	reload := &reloader{
		path: path, read: read, running: cfg, gate: g, certificates: certs.all, counts: metrics.NewReloads(), blocked: n.audit.Ready,
	}
	if n.pool != nil {
		reload.machines = n.changeMachines
		n.followMachines()
		slog.Info("trikey is running", "version", version, "machines", cfg.Machines, "api", cfg.API.Listen, "grpc", cfg.GRPC.Listen, "admin", cfg.Admin.Listen, "ops", cfg.Ops.Listen)
		return s.run(ctx, reload)
	}
	n.startWarm(ctx, cfg)
	status, err := n.desk.Status(ctx)
	if err != nil {
		return err
	}
	slog.Info("trikey is running", "version", version, "state", status.State, "api", cfg.API.Listen, "grpc", cfg.GRPC.Listen, "admin", cfg.Admin.Listen, "ops", cfg.Ops.Listen,
		"chip", status.Chip, "memory", status.Memory)
	return s.run(ctx, reload)
}

// consoles opens the machine's console, and the listener of custodians who are elsewhere.
func (n *node) consoles(s *servers, cfg *config.Config, c *certificate) error {
	handler, err := console.Handler(n.console)
	if err != nil {
		return err
	}
	s.unix("machine", cfg.MachineSocket(), handler)
	if listen := cfg.Machine.Custodians.Listen; listen != "" {
		s.custodians(listen, c, submit.Handler(audit.WatchSubmissions(n.desk, n.audit)))
	}
	return nil
}

// doors opens the two ways in to the admin API: the socket, and the listener for people.
func (n *node) doors(s *servers, cfg config.Admin, socket string, c *certificate, g *gate, provider *oidc.Client) {
	way := api.Door{OIDC: provider, Local: api.LocalUse(cfg.Local), Approval: api.ApprovalMode(cfg.Approval), RequestLife: cfg.RequestLife, Lockout: g.guard.Lockout}
	s.unix("admin", socket, api.NewAdmin(n.service, n.audit, way))
	if cfg.Listen != "" {
		way.Remote = true
		s.tls("admin", cfg.Listen, c.config(), api.NewAdmin(n.service, n.audit, way))
	}
}

// recordService records what the service itself does. A log that is blocked has said so.
func (n *node) recordService(op string, details map[string]string) {
	if _, err := n.audit.Record(audit.Event{Kind: audit.Service, Op: op, Actor: audit.ActorOf(context.Background()), Details: details}); err != nil {
		slog.Error("not recorded in the audit log", "op", op, "error", err)
	}
}

// Names in the events that tell of the key store as it was loaded.
const (
	opServing     = "serving"
	detailChanges = "changes"
)

// recordServing records what was loaded. The number of changes shows, in the log, where
// the whole key store was put back to an older state.
func (n *node) recordServing(keys, apps int, changes uint64) {
	limitMemory(keys)
	n.recordService(opServing, map[string]string{
		"keys": strconv.Itoa(keys), "apps": strconv.Itoa(apps), detailChanges: strconv.FormatUint(changes, 10),
	})
}

// recordSteward has what the steward does of a key recorded.
func (n *node) recordSteward(ctx context.Context, op string, index uint32, f func() error) error {
	m, err := n.audit.Begin(ctx, audit.Event{Kind: audit.Service, Op: op, Actor: "steward", Key: index})
	if err != nil {
		return err
	}
	err = f()
	_ = m.End(audit.Outcome(err), nil) // it says so itself
	return err
}

// startWarm opens the machine without cards, where that is the policy. Where it is not,
// or fails, the cards may open it.
func (n *node) startWarm(ctx context.Context, cfg *config.Config) {
	var recorded *audit.Managed
	if cfg.Machine.Start == config.StartWarm {
		var err error
		if recorded, err = n.audit.Begin(ctx, audit.Event{Kind: audit.Service, Op: "warm-start"}); err != nil {
			slog.Error("the machine did not start warm", "error", err)
			return
		}
	}
	warm, err := n.desk.Start(ctx)
	if recorded != nil {
		_ = recorded.End(audit.Outcome(err), map[string]string{"opened": strconv.FormatBool(warm)}) // it says so itself
	}
	switch {
	case err != nil:
		slog.Error("the machine did not start warm", "error", err)
	case warm:
		slog.Warn("the machine was opened without cards, from disk, by its chip (machine.start: warm)")
	}
}
