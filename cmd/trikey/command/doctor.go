package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/audit"
	"github.com/trikey/trikey/kms/epochs"
	"github.com/trikey/trikey/kms/identity"
)

// finding is one thing that doctor has looked at.
type finding struct {
	Check  string `json:"check"`
	State  string `json:"state"` // ok, note, or finding: what must be mended
	Detail string `json:"detail"`
}

// States of a finding.
const (
	stateOK      = "ok"
	stateNote    = "note"
	stateFinding = "finding"
)

// doctor looks at a data directory.
type doctor struct {
	o    *options
	cfg  *config.Config
	now  time.Time
	list []finding
}

func newDoctor(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Check a data directory: configuration, files, key store, audit log", Args: cobra.NoArgs,
		Long: `Check a data directory: configuration, files, key store, audit log.

It changes nothing. Where the service runs and its machine is open, every record of the
key store is opened by it; otherwise the store is looked at from outside. The command
ends with exit code 6 where there is something to mend.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := o.load(nil)
			if err != nil {
				return err
			}
			d := &doctor{o: o, cfg: cfg, now: time.Now()}
			for _, check := range []func(context.Context){d.configuration, d.files, d.machine, d.store, d.epochs, d.audit, d.certificate, d.host} {
				check(cmd.Context())
			}
			return d.report(cmd)
		},
	}
}

func (d *doctor) add(check, state, format string, args ...any) {
	d.list = append(d.list, finding{check, state, fmt.Sprintf(format, args...)})
}

func (d *doctor) report(cmd *cobra.Command) error {
	found := 0
	for _, f := range d.list {
		if f.State == stateFinding {
			found++
		}
	}
	err := d.o.print(cmd, map[string]any{"findings": found, "checks": d.list}, func(w io.Writer) {
		for _, f := range d.list {
			fmt.Fprintf(w, "%-8s %-14s %s\n", f.State, f.Check, f.Detail)
		}
	})
	if err == nil && found > 0 {
		err = fault.New(fault.Findings, "%d findings; each says what to do", found)
	}
	return err
}

// configuration looks for settings that are allowed but unwise. What is not allowed is
// refused when the file is read.
func (d *doctor) configuration(context.Context) {
	before := len(d.list)
	if host, _, err := net.SplitHostPort(d.cfg.Ops.Listen); err != nil || host == "" || host != "localhost" && !isLoopback(host) {
		d.add("configuration", stateFinding, "ops.listen: %s is not on loopback, and has no TLS; listen on 127.0.0.1, and let a proxy in front add TLS", d.cfg.Ops.Listen)
	}
	if d.cfg.Audit.OnFailure == string(audit.Open) {
		d.add("configuration", stateNote, "audit.on_failure is open: while the audit log cannot be written, data is served unrecorded")
	}
	if d.cfg.Audit.Data != string(audit.Sync) {
		d.add("configuration", stateNote, "audit.data is %s: a crash loses events of the data plane, or none are recorded", d.cfg.Audit.Data)
	}
	if len(d.cfg.Audit.Ship) == 0 {
		d.add("configuration", stateNote, "audit.ship is empty: who owns this host can write another audit log and have it signed; ship checkpoints to another host")
	}
	if d.cfg.Machine.Start == config.StartWarm {
		d.add("configuration", stateNote, "machine.start is warm: the chip opens the machine without cards")
	}
	if len(d.list) == before {
		d.add("configuration", stateOK, "nothing unwise")
	}
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// files looks for files that others than their owner can read.
func (d *doctor) files(context.Context) {
	before := len(d.list)
	look := func(path string, info fs.FileInfo) {
		if info.Mode().Perm()&0o077 != 0 {
			d.add("files", stateFinding, "%s has mode %04o: others may read or change it; chmod go= %s", path, info.Mode().Perm(), path)
		}
	}
	for _, dir := range []string{d.cfg.Data, d.cfg.AuditDir()} {
		err := filepath.Walk(dir, func(path string, info fs.FileInfo, err error) error {
			if errors.Is(err, fs.ErrNotExist) && path != dir {
				return nil // it was there a moment ago
			}
			if err == nil {
				look(path, info)
			}
			return err
		})
		if err != nil {
			d.add("files", stateFinding, "%s: %v; run doctor as the service's user", dir, err)
		}
	}
	for _, path := range []string{d.cfg.API.Key, d.cfg.Machine.Chip.PINFile, d.cfg.Machine.Key, d.cfg.Link.Key} {
		if path == "" { // a service whose machines run apart has no chip, and these no API
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			d.add("files", stateFinding, "%v; put the file where the configuration says, or correct that", err)
			continue
		}
		look(path, info)
	}
	if len(d.list) == before {
		d.add("files", stateOK, "only their owner reads them")
	}
}

// epochs looks at the destruction keys.
func (d *doctor) epochs(context.Context) {
	path := filepath.Join(d.cfg.Data, epochsFile)
	raw, err := os.ReadFile(path)
	var head epochs.Head
	if err == nil {
		head, err = epochs.Inspect(raw)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		d.add("epochs", stateNote, "there is no %s: it is made when the machine is first opened; where there are keys already, put the newest copy there", path)
	case err != nil:
		d.add("epochs", stateFinding, "%s: %v", path, err)
	default:
		d.add("epochs", stateOK, "destruction keys, %d bytes, destruction %d", len(raw), head.Counter)
	}
}

// machine looks at the machine's record.
func (d *doctor) machine(context.Context) {
	if len(d.cfg.Machines) > 0 {
		d.add("machine", stateNote, "the crypto machines run apart (%s): run doctor on their hosts too", strings.Join(d.cfg.Machines, ", "))
		return
	}
	path := filepath.Join(d.cfg.Data, "machine.json")
	var r hsm.Record
	found, err := durable.Read(path, &r)
	switch {
	case err != nil:
		d.add("machine", stateFinding, "%v", err)
	case !found:
		d.add("machine", stateNote, "the machine is blank: there is no %s; initialise it with trikey machine init", path)
	case r.Region != d.cfg.Region:
		d.add("machine", stateFinding, "region is %q in the configuration, but %q in %s: correct the configuration", d.cfg.Region, r.Region, path)
	case len(r.Cards) != int(r.Shares) || r.Threshold > r.Shares || r.KCV == "":
		d.add("machine", stateFinding, "%s does not fit together (%d cards of %d, threshold %d); restore it from a backup", path, len(r.Cards), r.Shares, r.Threshold)
	case r.Threshold == r.Shares:
		d.add("machine", stateNote, "all of %d cards are needed: one dead card loses every key; deal spare ones (trikey machine resplit --shares 5)", r.Shares)
	default:
		d.add("machine", stateOK, "any %d of %d cards open it", r.Threshold, r.Shares)
	}
}

// store asks the running service, or looks at the file itself.
func (d *doctor) store(ctx context.Context) {
	var all v1.Integrity
	err := d.o.admin(ctx, http.MethodGet, "integrity", nil, &all)
	switch {
	case err == nil:
		d.add("key store", stateOK, "every record opens and is the newest: %d", all.Records)
		return
	case errors.Is(err, fault.Sealed):
		d.add("key store", stateNote, "the machine is sealed: that every record opens is seen when its cards are given")
		return
	case !errors.Is(err, fault.Unavailable) || !unreached(err):
		// The service has it open, and says why it does not serve it.
		d.add("key store", stateFinding, "%v", err)
		return
	}
	records, findings := inspectStore(ctx, d.cfg)
	for _, f := range findings {
		d.add("key store", stateFinding, "%v", f)
	}
	if len(findings) == 0 {
		d.add("key store", stateOK, "the file is whole: %d records; the service does not run, so none was opened", records)
	}
}

// unreached reports whether an error says that no service answers, and not what one has
// answered.
func unreached(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial)
}

// certificate looks at how long the service's certificate is good.
func (d *doctor) certificate(context.Context) {
	section, cert, key := "api", d.cfg.API.Cert, d.cfg.API.Key
	if cert == "" && d.cfg.Machine.Cert != "" { // of a machine that runs apart
		section, cert, key = "machine", d.cfg.Machine.Cert, d.cfg.Machine.Key
	}
	c, err := newCertificate(section, cert, key)
	if err != nil {
		d.add("certificate", stateFinding, "%v", err)
		return
	}
	const soon = 30 * 24 * time.Hour
	leaf := c.current.Load().Leaf
	left := leaf.NotAfter.Sub(d.now)
	switch {
	case left < 0:
		d.add("certificate", stateFinding, "%s has expired on %s; put a new one there and send the service SIGHUP", cert, leaf.NotAfter.Format(time.DateOnly))
	case left < soon:
		d.add("certificate", stateFinding, "%s expires on %s; put a new one there and send the service SIGHUP", cert, leaf.NotAfter.Format(time.DateOnly))
	default:
		d.add("certificate", stateOK, "good until %s", leaf.NotAfter.Format(time.DateOnly))
	}
}

// host looks at what the service needs of the host.
func (d *doctor) host(context.Context) {
	const memory, space = 8 << 20, 1 << 30
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err == nil && limit.Max < memory {
		d.add("memory", stateFinding, "this user may lock %d KiB of memory, and keys need 8 MiB: raise memlock (LimitMEMLOCK= in the unit)", limit.Max>>10)
	} else {
		d.add("memory", stateOK, "enough may be locked")
	}
	for _, dir := range []string{d.cfg.Data, d.cfg.AuditDir()} {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err == nil && s.Bavail*uint64(s.Bsize) < space {
			d.add("disk", stateFinding, "%d MiB are left for %s: when the disk is full, nothing is served; make room", s.Bavail*uint64(s.Bsize)>>20, dir)
		}
	}
	if state, err := unix.Adjtimex(&unix.Timex{}); err == nil && state == unix.TIME_ERROR {
		d.add("time", stateNote, "the kernel says that its clock is not synchronised: events get wrong times, tokens wrong lives; run chrony or another NTP client")
	}
}

// signer is the fingerprint of the key that signs the audit log's checkpoints, "" while
// there is none.
func (d *doctor) signer() (string, error) {
	if len(d.cfg.Machines) > 0 {
		return identity.Fingerprint(d.cfg.Data)
	}
	var id struct {
		PublicKey []byte `json:"public_key"`
		Sealed    []byte `json:"sealed"`
	}
	found, err := durable.Read(filepath.Join(d.cfg.Data, "identity.json"), &id)
	if err != nil || !found {
		return "", err
	}
	return audit.Fingerprint(id.PublicKey), nil
}

// audit verifies the audit log, with the machine's key and the checkpoints that were
// shipped to files.
func (d *doctor) audit(context.Context) {
	var o audit.VerifyOptions
	if fingerprint, err := d.signer(); err != nil {
		d.add("audit", stateFinding, "%v", err)
	} else if fingerprint != "" {
		o.Fingerprints = append(o.Fingerprints, fingerprint)
	}
	for _, s := range d.cfg.Audit.Ship {
		if s.File == "" {
			continue
		}
		raw, err := os.ReadFile(s.File)
		if err != nil {
			d.add("audit", stateFinding, "the checkpoints that were shipped: %v", err)
			continue
		}
		o.Since = append(o.Since, raw...)
	}
	var changes, at int64
	o.Each = func(e audit.Event) {
		var n int64
		if e.Kind != audit.Service || e.Op != opServing {
			return
		}
		if _, err := fmt.Sscan(e.Details[detailChanges], &n); err == nil && n < changes {
			d.add("key store", stateFinding, "the whole store was put back: at event %d it had seen %d changes, at event %d only %d; if nobody restored a backup then, "+
				"treat it as an attack", at, changes, e.Number, n)
		}
		changes, at = n, e.Number
	}
	r, err := audit.Verify(d.cfg.AuditDir(), o)
	switch {
	case errors.Is(err, fault.NotFound):
		d.add("audit", stateNote, "there is no audit log yet: %s", d.cfg.AuditDir())
	case err != nil:
		d.add("audit", stateFinding, "%s; keep the directory as evidence, and compare with checkpoints that were kept elsewhere", strings.TrimSpace(err.Error()))
	default:
		d.add("audit", stateOK, "whole: %d events, of which %d are signed", r.Events, r.Signed)
	}
}
