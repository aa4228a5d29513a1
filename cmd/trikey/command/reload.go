package command

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/trikey/trikey/api"
	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/kms/alert"
)

// lookEvery is how often files are looked at for changes. Looking works where notices
// of the kernel do not: on network file systems, and through the links of mounted secrets.
const lookEvery = time.Second

// reloader reads the configuration and the certificates anew, when it is told to and when
// a file has changed. What has a fault changes nothing.
type reloader struct {
	running      *config.Config // what the process was started with; what is reloadable in it, as it holds
	certificates []*certificate

	// What a service has besides. A crypto machine apart has none of it, and reads its
	// certificates alone.
	gate     *gate
	path     string                         // of the configuration
	read     func() (*config.Config, error) // with the flags of the start
	counts   *api.Reloads
	blocked  func() error                                // why nothing can be recorded in the audit log
	machines func(context.Context, *config.Config) error // goes on with those that a configuration names; nil where there is one in the process

	seen   map[string]stamp
	warned []config.Key // that need a restart, as they were told last
}

// stamp is what tells a file from another of its name.
type stamp struct {
	modified time.Time
	size     int64
	file     os.FileInfo
}

func (s stamp) same(o stamp) bool {
	return s.modified.Equal(o.modified) && s.size == o.size && (s.file == nil) == (o.file == nil) && (s.file == nil || os.SameFile(s.file, o.file))
}

// files are those that are looked at.
func (r *reloader) files() []string {
	names := []string{r.path, r.running.Alerts.Webhook.CA, r.running.Alerts.Webhook.SecretFile}
	for _, c := range r.certificates {
		names = append(names, c.cert, c.key)
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}

// look notes how the files are, and reports whether one has changed.
func (r *reloader) look() (changed bool) {
	now := map[string]stamp{}
	for _, name := range r.files() {
		var s stamp
		if info, err := os.Stat(name); err == nil {
			s = stamp{info.ModTime(), info.Size(), info}
		}
		if before, known := r.seen[name]; known && !before.same(s) {
			changed = true
		}
		now[name] = s
	}
	r.seen = now
	return changed
}

// run reloads until ctx ends, and meanwhile looks after the audit log too.
func (r *reloader) run(ctx context.Context, hangup <-chan os.Signal) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	r.look()
	pending := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			r.look()
			pending = false
			r.reload(ctx, "SIGHUP")
		case <-ticker.C:
			if r.gate != nil {
				r.gate.guard.Alerts.Audit(r.blocked())
			}
			// Not while somebody still writes: half a file may look like a whole one.
			changed := r.look()
			if pending && !changed {
				r.reload(ctx, "a file has changed")
			}
			pending = changed
		}
	}
}

// reload reads everything anew.
func (r *reloader) reload(ctx context.Context, why string) {
	var err error
	if r.gate != nil {
		err = r.configuration(ctx)
	}
	for _, c := range r.certificates {
		if failed := c.load(); failed != nil {
			slog.Error("the TLS certificate was not replaced", "section", c.section, "error", failed)
			err = errors.Join(err, failed)
			continue
		}
		slog.Info("the TLS certificate was read anew", "section", c.section)
	}
	if r.gate != nil {
		r.counts.Done(err)
	}
	if err != nil && r.gate != nil {
		r.gate.guard.Alerts.Raise(alert.Alert{Kind: alert.ReloadFailed, Text: "a changed configuration or certificate was refused; the one before holds: see the log"})
	}
	slog.Info("reloaded", "why", why, "ok", err == nil)
}

func (r *reloader) configuration(ctx context.Context) error {
	cfg, err := r.read()
	var apply func()
	if err == nil {
		apply, err = r.gate.prepare(cfg)
	}
	if err == nil && r.machines != nil {
		err = r.machines(ctx, cfg)
	}
	if err != nil {
		slog.Error("the configuration was not read anew; the one before holds", "file", r.path, "error", err)
		return err
	}
	apply()
	var fixed []config.Key
	for _, k := range r.running.Changed(cfg) {
		if !reloadable[k] && (k != "machines" || r.machines == nil) {
			fixed = append(fixed, k)
		}
	}
	if len(fixed) > 0 && !slices.Equal(fixed, r.warned) {
		slog.Warn("these keys of the configuration have changed; they need a restart", "keys", fixed)
	}
	r.warned = fixed
	r.running.Limits, r.running.Alerts, r.running.API.TrustedProxies, r.running.Machines = cfg.Limits, cfg.Alerts, cfg.API.TrustedProxies, cfg.Machines
	return nil
}
