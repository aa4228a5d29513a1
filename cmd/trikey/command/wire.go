package command

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/custody"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/hsm/pintry"
	"github.com/trikey/trikey/hsm/pool"
	"github.com/trikey/trikey/hsm/resident"
	"github.com/trikey/trikey/hsm/soft"
	"github.com/trikey/trikey/internal/failpoint"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/keystore/etcd"
	"github.com/trikey/trikey/keystore/migrate"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/audit"
	"github.com/trikey/trikey/kms/record"
	"github.com/trikey/trikey/kms/token"
)

// node is everything that one process has: this file alone knows which
// implementations those are.
type node struct {
	lock    *os.File // the data directory is ours
	chip    hsm.Chip
	engine  hsm.Engine
	desk    *custody.Desk
	audit   *audit.Log
	console hsm.Console // the desk, with every step recorded
	tries   string      // directory of the count of PIN tries; "": the data directory
	store   keystore.Store
	service *kms.Service

	machine hsm.Machine // that the service uses: the engine, or those that run apart
	pool    *pool.Pool  // of those; nil: there are none
	signer  signer      // the desk, or the service's own identity
	apart   bool        // the key store is with services elsewhere
	follow  func()      // ends the following of machines that run apart
}

// signer has a key that statements are signed with.
type signer interface {
	PublicKey(ctx context.Context) (ed25519.PublicKey, error)
	Sign(ctx context.Context, context string, message []byte) (hsm.Signature, error)
}

// newMachine builds the crypto machine of a configuration, without a service.
func newMachine(ctx context.Context, cfg *config.Config) (n *node, err error) {
	return newMachineFor(ctx, cfg, false)
}

// newMachineFor is newMachine; apart says that services elsewhere use it.
func newMachineFor(ctx context.Context, cfg *config.Config, apart bool) (n *node, err error) {
	n = &node{apart: apart}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if err := n.openEngine(cfg); err != nil {
		return n, err
	}
	return n, n.openDesk(ctx, cfg)
}

// openEngine takes the data directory and opens the chip.
func (n *node) openEngine(cfg *config.Config) (err error) {
	if err := n.takeDir(cfg); err != nil {
		return err
	}
	return withChip(cfg, func(chip p11.ChipConfig) error {
		opened, err := p11.OpenChip(chip)
		if err == nil {
			n.chip, n.engine = opened, newEngine(cfg, opened)
			n.machine = n.engine
		}
		return err
	})
}

// takeDir takes the data directory.
func (n *node) takeDir(cfg *config.Config) (err error) {
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return fault.Wrap(fault.BadConfig, err, "the data directory")
	}
	n.lock, err = lockDir(cfg.Data)
	return err
}

// withChip calls f with the chip of a configuration, and its PIN, on a stack that is burnt
// afterwards: a scan found the PIN on the caller's.
func withChip(cfg *config.Config, f func(p11.ChipConfig) error) error {
	return secret.Scrub(func() error { return giveChip(cfg, f) })
}

func giveChip(cfg *config.Config, f func(p11.ChipConfig) error) error {
	pin, err := readSecretFile(cfg.Machine.Chip.PINFile)
	if err != nil {
		return fault.Wrap(fault.CodeOf(err), err, "the PIN of the machine's chip (machine.chip.pin_file)")
	}
	defer pin.Wipe()
	chip := cfg.Machine.Chip
	return f(p11.ChipConfig{
		Module: p11.ModuleConfig{Path: chip.Module, Env: chip.Env}, Label: chip.Label, Serial: chip.Serial, PIN: pin,
	})
}

// machineRecord returns the public record of a machine.
func machineRecord(cfg *config.Config) (hsm.Record, error) { return custody.Record(cfg.Data) }

// provisionChip makes the machine's keys on its chip.
func provisionChip(cfg *config.Config) error { return withChip(cfg, p11.ProvisionChip) }

// openDesk opens the machine's console, and the audit log, whose checkpoints the machine
// signs.
func (n *node) openDesk(ctx context.Context, cfg *config.Config) error {
	c, err := n.custody(cfg)
	if err != nil {
		return err
	}
	if n.desk, err = custody.New(c); err != nil {
		return err
	}
	n.signer = n.desk
	if err := n.openAudit(ctx, cfg); err != nil {
		return err
	}
	n.console = audit.Watch(n.desk, n.audit)
	return nil
}

// openAudit opens the audit log, whose checkpoints the signer signs.
func (n *node) openAudit(ctx context.Context, cfg *config.Config) error {
	sinks, err := newSinks(cfg.Audit.Ship)
	if err != nil {
		return err
	}
	n.audit, err = audit.New(ctx, audit.Config{
		Dir: cfg.AuditDir(), Signer: n, Data: audit.Mode(cfg.Audit.Data), OnFailure: audit.Policy(cfg.Audit.OnFailure),
		Sinks: sinks, Log: slog.Default(),
	})
	return err
}

// newSinks are where checkpoints are shipped to.
func newSinks(ship []config.Ship) (sinks []audit.Sink, err error) {
	for _, s := range ship {
		var sink audit.Sink
		switch {
		case s.File != "":
			sink = audit.FileSink{Path: s.File}
		case s.Syslog != "":
			sink = audit.SyslogSink{Path: s.Syslog}
		default:
			if sink, err = audit.NewWebhookSink(s.Webhook, s.CA); err != nil {
				return nil, err
			}
		}
		sinks = append(sinks, sink)
	}
	return sinks, nil
}

// custody is the configuration of the machine's console.
func (n *node) custody(cfg *config.Config) (custody.Config, error) {
	modules := make([]p11.ModuleConfig, len(cfg.Machine.Cards))
	for i, m := range cfg.Machine.Cards {
		modules[i] = p11.ModuleConfig{Path: m.Module, Env: m.Env, Form: p11.Form(m.Form), OAEP: m.OAEP, Key: m.Key, Shares: cfg.CardShares()}
		if err := modules[i].Check(); err != nil {
			return custody.Config{}, err
		}
	}
	tries, err := pintry.Open(cmp.Or(n.tries, cfg.Data))
	if err != nil {
		return custody.Config{}, err
	}
	c := custody.Config{
		Dir: cfg.Data, Region: cfg.Region, Reader: p11.NewReader(p11.ReaderConfig{Modules: modules, Tries: tries}), Engine: n.engine, Chip: n.chip,
		Warm: cfg.Machine.Start == config.StartWarm, Apart: n.apart, Remote: cfg.Machine.Custodians.Listen != "",
		Join: cfg.Machine.Join == config.JoinApprove, Now: failpoint.Now,
	}
	if n.service != nil {
		c.Service = n.service
	}
	return c, nil
}

// newCustodian is the reader of a custodian's own computer, with a count of PIN tries in
// a directory that it has for itself until it is released.
func newCustodian(m config.Module, state string) (reader hsm.Reader, release func() error, err error) {
	module := p11.ModuleConfig{Path: m.Module, Env: m.Env}
	if state, err = custodianDir(state); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, nil, fault.Wrap(fault.BadConfig, err, "the directory of the count of PIN tries (--state)")
	}
	lock, err := lockDir(state)
	if err != nil {
		return nil, nil, err
	}
	tries, err := pintry.Open(state)
	if err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	return p11.NewReader(p11.ReaderConfig{Modules: []p11.ModuleConfig{module}, Tries: tries}), lock.Close, nil
}

// newEngine returns the engine that the configuration names.
func newEngine(cfg *config.Config, chip *p11.Chip) hsm.Engine {
	if cfg.Machine.Engine == config.EngineToken {
		return resident.New(resident.Config{Token: chip, Region: cfg.Region, Keys: cfg.Machine.Keys})
	}
	return soft.New(soft.Config{Chip: chip, Region: cfg.Region, Keys: cfg.Machine.Keys, MessageKeys: 2 * cfg.Machine.Keys})
}

// newNode builds the machine and the service over it, which holds callers to what the
// gate says; a rehearsal has no callers and no gate.
func newNode(ctx context.Context, cfg *config.Config, g *gate) (n *node, err error) {
	n = &node{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	tokens, err := newTokens(cfg)
	if err != nil {
		return n, err
	}
	if len(cfg.Machines) > 0 {
		return n, n.openApart(ctx, cfg, tokens, g)
	}
	if err := n.openEngine(cfg); err != nil {
		return n, err
	}
	if n.store, err = openStore(ctx, cfg.Store, cfg.StoreFile()); err != nil {
		return n, err
	}
	n.newService(cfg, tokens, g)
	return n, n.openDesk(ctx, cfg)
}

func (n *node) newService(cfg *config.Config, tokens token.Config, g *gate) {
	service := kms.Config{
		Machine: n.machine, Store: n.store, Log: slog.Default(), Signer: n, Loaded: n.recordServing, Record: n.recordSteward, Tokens: tokens,
		Now: failpoint.Now, Epochs: cfg.Data, Scratch: scratchStore,
		Host: func(ctx context.Context) (kms.BackupHost, error) { return n.backupHost(ctx, cfg) },
	}
	if g != nil {
		service.Limits, service.Alert, service.UnusualRate = g.guard.Limits, g.guard.Alerts.Raise, &g.unusualRate
	}
	n.service = kms.New(service)
}

// newTokens says how tokens are issued.
func newTokens(cfg *config.Config) (token.Config, error) {
	c := cfg.Tokens
	t := token.Config{Issuer: cfg.TokenIssuer(), Audience: c.Audience, Key: c.Key, AppTTL: c.AppTTL, UserTTL: c.UserTTL, AdminTTL: c.AdminTTL}.Filled()
	return t, t.Check()
}

// openStore opens the store that a configuration names; path is that of a file.
func openStore(ctx context.Context, c config.Store, path string) (keystore.Store, error) {
	if c.Kind == config.StoreBolt {
		s, err := bolt.Open(bolt.Config{Path: path})
		if err != nil {
			return nil, err // not s: a nil *bolt.Store is not a nil Store
		}
		return s, nil
	}
	e := etcd.Config{Endpoints: c.Endpoints, Prefix: c.Prefix, CA: c.CA, Cert: c.Cert, Key: c.Key, User: c.User}
	if c.PasswordFile != "" {
		password, err := readSecretFile(c.PasswordFile)
		if err != nil {
			return nil, fault.Wrap(fault.CodeOf(err), err, "the password of etcd's user (store.password_file)")
		}
		defer password.Wipe()
		e.Password = password
	}
	s, err := etcd.Open(ctx, e)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// migrateStore copies a store to another; access says how to reach etcd.
func migrateStore(ctx context.Context, access config.Store, from, to string, progress func(done, total int)) (report migrate.Report, err error) {
	cfg := migrate.Config{Last: record.RootEntry, Progress: progress}
	for _, side := range []struct {
		where string
		store *keystore.Store
		is    string
	}{{from, &cfg.From, "source"}, {to, &cfg.To, "target"}} {
		c, path, err := access.ParseStore(side.where)
		if err != nil {
			return report, err
		}
		if _, missing := os.Stat(path); path != "" && side.is == "source" && missing != nil {
			return report, fault.Wrap(fault.NotFound, missing, "the source")
		}
		if *side.store, err = openStore(ctx, c, path); err != nil {
			return report, fault.Wrap(fault.CodeOf(err), err, "the %s", side.is)
		}
		defer func() { err = errors.Join(err, (*side.store).Close()) }()
	}
	return migrate.Run(ctx, cfg)
}

// Close releases everything, in the reverse order.
func (n *node) Close() error {
	var failed error
	if n.follow != nil {
		n.follow()
	}
	if n.service != nil {
		failed = errors.Join(failed, n.service.Close())
	}
	// Its last checkpoint needs the desk and the chip.
	failed = errors.Join(failed, n.audit.Close())
	if n.desk != nil {
		failed = errors.Join(failed, n.desk.Close())
	}
	if n.engine != nil {
		failed = errors.Join(failed, n.engine.Close())
	}
	if n.chip != nil {
		failed = errors.Join(failed, n.chip.Close())
	}
	if n.pool != nil {
		failed = errors.Join(failed, n.pool.Close())
	}
	if n.store != nil {
		failed = errors.Join(failed, n.store.Close())
	}
	if n.lock != nil {
		failed = errors.Join(failed, n.lock.Close())
	}
	return failed
}

// lockDir makes sure that one process has the data directory.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.BadConfig, err, "the data directory")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fault.New(fault.StoreLocked, "the data directory %s is in use by another trikey process; stop that one first", dir)
	}
	return f, nil
}

// inspectStore looks at the key store of a service that does not run.
func inspectStore(ctx context.Context, cfg *config.Config) (records int, findings []error) {
	if _, err := os.Stat(cfg.StoreFile()); cfg.Store.Kind == config.StoreBolt && errors.Is(err, os.ErrNotExist) {
		return 0, nil // nothing was ever stored
	}
	store, err := openStore(ctx, cfg.Store, cfg.StoreFile())
	if err != nil {
		return 0, []error{err}
	}
	records, findings = record.Inspect(ctx, store)
	if len(findings) == 1 && errors.Is(findings[0], keystore.ErrNotFound) {
		findings = nil // the machine was never open
	}
	if err := store.Close(); err != nil {
		findings = append(findings, err)
	}
	return records, findings
}
