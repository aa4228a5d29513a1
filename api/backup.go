package api

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/audit"
	"github.com/trikey/trikey/kms/backup"
)

const backupRoutes = "/admin/v1/backup"

// maxEpochs bounds a file of destruction keys.
const maxEpochs = 256 << 20

// backups adds the routes of backups. Each is recorded before it begins, and how it ended.
func (a admin) backups(r chi.Router) {
	r.Post(backupRoutes+"/create", recorded(a.log, "backup-create", func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Content-Type", octets)
		_, err := a.service.Backup(r.Context(), actor(r), w)
		return err
	}))
	r.Post(backupRoutes+"/verify", recorded(a.log, "backup-verify", func(w http.ResponseWriter, r *http.Request) error {
		c, err := a.service.VerifyBackup(r.Context(), r.Body)
		if err != nil {
			return err
		}
		jsonhttp.Write(w, http.StatusOK, BackupOf(c))
		return nil
	}))
	r.Post(backupRoutes+"/drill", recorded(a.log, "backup-drill", func(w http.ResponseWriter, r *http.Request) error {
		var size [4]byte
		if _, err := io.ReadFull(r.Body, size[:]); err != nil {
			return fault.New(fault.BadRequest, "the body ended early")
		}
		n := binary.BigEndian.Uint32(size[:])
		if n > maxEpochs {
			return fault.New(fault.TooLarge, "the file of destruction keys is larger than %d bytes", maxEpochs)
		}
		epochs, err := io.ReadAll(io.LimitReader(r.Body, int64(n)))
		if err != nil {
			return fault.New(fault.BadRequest, "the body ended early")
		}
		out, err := a.service.Drill(r.Context(), epochs, r.Body)
		if err != nil {
			return err
		}
		jsonhttp.Write(w, http.StatusOK, out)
		return nil
	}))
	r.Post(backupRoutes+"/epochs", recorded(a.log, "backup-epochs", func(w http.ResponseWriter, _ *http.Request) error {
		raw, err := a.service.EpochsCopy()
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", octets)
		_, err = w.Write(raw)
		return err
	}))
}

const octets = "application/octet-stream"

// begun notes whether an answer has begun: then an error cannot be one.
type begun struct {
	http.ResponseWriter
	yes bool
}

// Write is that of http.ResponseWriter. What is written must be taken within segmentTime,
// however long the whole is.
func (w *begun) Write(b []byte) (int, error) {
	w.yes = true
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(segmentTime))
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *begun) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func recorded(log *audit.Log, op string, f func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		_, _ = c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{}) // a backup may be long
		m, err := log.Begin(r.Context(), audit.Event{Kind: audit.Admin, Op: op, Address: addressOf(r)})
		if err != nil {
			jsonhttp.Error(w, r, err)
			return
		}
		out := &begun{ResponseWriter: w}
		err = f(out, r)
		if failed := m.End(audit.Outcome(err), nil); err == nil {
			err = failed
		}
		switch {
		case err == nil:
		case out.yes:
			slog.ErrorContext(r.Context(), "a backup was broken off", "op", op, "error", err)
			panic(http.ErrAbortHandler) // so that the client notices
		default:
			jsonhttp.Error(w, r, err)
		}
	}
}

// BackupOf is what is told of a backup that was checked.
func BackupOf(c backup.Checked) v1.Backup {
	h, s := c.Header, c.Summary
	return v1.Backup{
		ID: h.ID.String(), Created: h.Created, Release: h.Release, MachineID: h.Record.MachineID.String(), RootID: h.Record.RootID.String(),
		Generation: h.Record.Generation, KCV: h.Record.KCV, Region: h.Record.Region, Revision: s.Revision, Records: s.Records, Keys: s.Keys,
		Versions: s.Versions, Destructions: s.Destructions, AuditEvents: s.AuditEvents, AuditHead: s.AuditHead, Fingerprint: c.Fingerprint,
	}
}

// WatchBackups adds trikey_backup_age_seconds to the metrics.
func (m *Metrics) WatchBackups(service *kms.Service, now func() time.Time) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "trikey_backup_age_seconds", Help: "Seconds since the newest backup was made; that of 1970 where none was, or while the machine is sealed.",
	}, func() float64 {
		last := service.LastBackup()
		if last.IsZero() {
			last = time.Unix(0, 0)
		}
		return now().Sub(last).Seconds()
	}))
}
