package command

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/custody"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/keystore/migrate"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/epochs"
	"github.com/trikey/trikey/kms/record"
)

// epochsFile is the file of destruction keys in the data directory.
const epochsFile = epochs.File

// backupHost is what a backup has of this host.
func (n *node) backupHost(ctx context.Context, cfg *config.Config) (kms.BackupHost, error) {
	host := kms.BackupHost{Release: version, Files: map[string][]byte{}}
	host.AuditEvents, host.AuditHead = n.audit.Head()
	if n.desk == nil { // the machines run apart: their records and cards' files are theirs
		status, err := n.machine.Status(ctx)
		host.Record.Manifest = hsm.Manifest{
			MachineID: status.MachineID, RootID: status.RootID, Generation: status.Generation, SplitID: status.SplitID,
			Threshold: uint8(status.Need), Shares: uint8(status.Shares), Region: status.Region, KCV: status.KCV,
		}
		return host, err
	}
	var ok bool
	if host.Record, ok = n.desk.Record(); !ok {
		return host, fault.New(fault.MachineBlank, "the machine is blank: there is nothing to back up")
	}
	entries, err := os.ReadDir(cfg.CardShares())
	if errors.Is(err, fs.ErrNotExist) {
		return host, nil
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(cfg.CardShares(), e.Name())
		raw, failed := os.ReadFile(path)
		name, relErr := filepath.Rel(cfg.Data, path)
		if err = errors.Join(err, failed, relErr); err == nil {
			host.Files[name] = raw
		}
	}
	return host, err
}

func writeMachineRecord(dir string, r hsm.Record) error { return custody.WriteRecord(dir, r) }

// scratchStore makes a store that is thrown away with its directory.
func scratchStore(dir string) (keystore.Store, error) {
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "store.db")})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// emptyTarget refuses to restore over anything.
func emptyTarget(ctx context.Context, cfg *config.Config) error {
	entries, err := os.ReadDir(cfg.Data)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.BadConfig, err, "the data directory")
	}
	if len(entries) > 0 {
		return fault.New(fault.Conflict, "the data directory %s is not empty: it has %s; a backup is restored to a host without one, "+
			"so move it away or name another (data)", cfg.Data, entries[0].Name())
	}
	if cfg.Store.Kind == config.StoreBolt {
		return nil
	}
	store, err := openStore(ctx, cfg.Store, "")
	if err != nil {
		return err
	}
	there, _, err := store.List(ctx, "", "", 1)
	if err == nil && len(there) > 0 {
		err = fault.New(fault.Conflict, "etcd has %q under the prefix %s; a backup is restored to an empty one, so name another (store.prefix)", there[0].Name, cfg.Store.Prefix)
	}
	return errors.Join(err, store.Close())
}

// newRestore builds the machine and the service over a directory that may become the data
// directory. Nothing is tended, and nobody is served.
func newRestore(ctx context.Context, cfg *config.Config, dir, state string) (n *node, err error) {
	staged := *cfg
	staged.Data, staged.Store, staged.Machine.Start = dir, config.Store{Kind: config.StoreBolt}, config.StartCards
	staged.Machine.Custodians = config.Custodians{}
	n = &node{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.tries, err = custodianDir(state); err != nil {
		return n, err
	}
	if err := os.MkdirAll(n.tries, 0o700); err != nil {
		return n, fault.Wrap(fault.BadConfig, err, "the directory of the count of PIN tries (--state)")
	}
	if n.store, err = openStore(ctx, staged.Store, staged.StoreFile()); err != nil {
		return n, err
	}
	if len(cfg.Machines) > 0 {
		if n.pool, err = newPool(cfg, nil); err != nil {
			return n, err
		}
		n.machine, err = n.pool, n.pool.SetMembers(ctx, cfg.Machines)
	} else {
		err = n.openRestoreDesk(&staged)
	}
	n.service = kms.New(kms.Config{Machine: n.machine, Store: n.store, Epochs: dir, Idle: true})
	return n, err
}

// openRestoreDesk opens the chip, and a console that knows no service: that is loaded when
// its store is filled.
func (n *node) openRestoreDesk(staged *config.Config) error {
	if err := n.openEngine(staged); err != nil {
		return err
	}
	c, err := n.custody(staged)
	if err != nil {
		return err
	}
	if n.desk, err = custody.New(c); err != nil {
		return err
	}
	n.console = n.desk
	return nil
}

// commitRestore makes the staged directory the data directory, in one step; before that,
// where the key store is etcd, it copies it there.
func commitRestore(ctx context.Context, cfg *config.Config, staging string) error {
	if cfg.Store.Kind != config.StoreBolt {
		if err := copyToEtcd(ctx, cfg, filepath.Join(staging, filepath.Base(cfg.StoreFile()))); err != nil {
			return err
		}
	}
	for _, name := range []string{"lock", "admin.sock", "machine.sock"} {
		if err := os.Remove(filepath.Join(staging, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := syncDir(staging); err != nil {
		return err
	}
	// An empty directory is replaced; one that is not, by now, is not.
	if err := unix.Rename(staging, cfg.Data); err != nil {
		return fault.Wrap(fault.Conflict, err, "the data directory %s is not empty any more; nothing was restored", cfg.Data)
	}
	return syncDir(filepath.Dir(cfg.Data))
}

func copyToEtcd(ctx context.Context, cfg *config.Config, path string) (err error) {
	from, err := bolt.Open(bolt.Config{Path: path})
	if err != nil {
		return err
	}
	to, err := openStore(ctx, cfg.Store, "")
	if err == nil {
		_, err = migrate.Run(ctx, migrate.Config{From: from, To: to, Last: record.RootEntry})
		err = errors.Join(err, to.Close())
	}
	if err = errors.Join(err, from.Close()); err != nil {
		return err
	}
	return os.Remove(path)
}

// syncDir has a directory's entries on the disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
