package main_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/trikey/trikey/cmd/trikey/config"
)

// TestBackupByPerson: where the socket serves nobody any more, an admin backs up, verifies
// and drills from a computer of their own, and an auditor cannot.
func TestBackupByPerson(t *testing.T) {
	t.Parallel()
	o := newOffice(t, func(cfg *config.Config) { cfg.Admin.Local = "none" })
	aud := o.first("aud", "auditor")
	ann := o.first("ann", "admin")
	ann.must("", "key", "create", "--index", "7", "--name", "chat")
	out, epochs := filepath.Join(ann.home, "backup.tkb"), filepath.Join(ann.home, "epochs.copy")
	if r := o.run("backup", "create", "--out", out); r.code != 4 || !strings.Contains(r.err, "trikey login") {
		t.Errorf("over the socket: %+v", r)
	}
	if r := aud.do("", "backup", "create", "--out", out); r.code != 4 || !strings.Contains(r.err, "not for the role auditor") {
		t.Errorf("by an auditor: %+v", r)
	}
	ann.must("", "backup", "create", "--out", out)
	ann.must("", "backup", "epochs", "--out", epochs)
	ann.must("", "backup", "verify", out, "--open")
	if r := ann.must("", "backup", "drill", out, "--epochs", epochs); !strings.Contains(r.out, "1 versions open") {
		t.Errorf("drill: %s", r.out)
	}
	if r := o.run("audit", "tail", "-n", "50", "-o", "json"); !strings.Contains(r.out, "backup-create") || !strings.Contains(r.out, "admin:ann") {
		t.Errorf("the audit log does not say who made the backup: %+v", r)
	}
}
