package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
)

// bare makes a host on which a backup can be restored: configuration, a chip of its own, the
// first site's card reader; no data directory.
func (s *site) bare() *site {
	s.t.Helper()
	b := newSite(s.t)
	first, err := config.Load(s.path("trikey.yaml"), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	b.configure(func(cfg *config.Config) { cfg.Machine.Cards = first.Machine.Cards })
	if err := os.RemoveAll(b.path("data")); err != nil {
		s.t.Fatal(err)
	}
	b.use(s)
	return b
}

// restore restores a backup on a bare host with the cards of the site that it is of.
func (s *site) restore(cards []string, args ...string) result {
	s.t.Helper()
	args = append([]string{"backup", "restore", "--state", s.path("state")}, args...)
	return s.run(append(args, s.pins(cards...)...)...)
}

// untouched checks that a restore that was refused has left nothing.
func (s *site) untouched() {
	s.t.Helper()
	left, err := filepath.Glob(s.path("data*"))
	if err != nil || len(left) > 0 {
		s.t.Errorf("a refused restore has left %v: %v", left, err)
	}
}

// entries are those of the site's key store under a prefix, out of a copy of the file.
func (s *site) entries(prefix string) []keystore.Entry {
	s.t.Helper()
	raw, err := os.ReadFile(s.path("data", "store.db"))
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.t.TempDir(), "copy.db")
	s.write(path, raw)
	store, err := bolt.Open(bolt.Config{Path: path})
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	list, _, err := store.List(s.t.Context(), prefix, "", 1<<20)
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

// stored is the value of one entry.
func (s *site) stored(name string) []byte {
	s.t.Helper()
	list := s.entries(name)
	if len(list) != 1 {
		s.t.Fatalf("%d entries are %s", len(list), name)
	}
	return list[0].Value
}

// onDisk reports whether bytes are in any file of the data directory.
func (s *site) onDisk(needle []byte) (found bool) {
	s.t.Helper()
	err := filepath.WalkDir(s.path("data"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // a file that was replaced meanwhile
			}
			return err
		}
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		found = found || bytes.Contains(raw, needle)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}

// later starts the service some hours ahead: after eight days what was ordered is destroyed.
func (s *site) later(hours int, env ...string) {
	s.t.Helper()
	s.kill()
	s.startBinary(trikeyFailpoint, append(env, fmt.Sprintf("TRIKEY_FAILPOINT_CLOCK=%dh", hours))...)
}

func (s *site) versionState(index, version int) string {
	s.t.Helper()
	for _, v := range s.keyJSON("show", fmt.Sprint(index)).Versions {
		if v.Version == version {
			return v.State
		}
	}
	return "not listed"
}

// Destroyed means destroyed: in the file of the key store, in memory, and in a backup that
// was made before, with the real cards, as long as nobody kept an older copy of the
// destruction keys.
func TestDestroyedMeansDestroyed(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	first := s.encrypt("7", []byte("text"), nil)
	s.ok("key", "rotate", "7")
	second := s.encrypt("7", []byte("text"), nil)
	s.ok("key", "schedule-destroy", "7", "--version", "1", "--days", "7")
	s.ok("backup", "create", "--out", s.path("backup"))
	s.ok("backup", "epochs", "--out", s.path("epochs.old"))
	record := s.stored("g1/keys/0000000007")
	old, err := os.ReadFile(s.path("epochs.old"))
	if err != nil {
		t.Fatal(err)
	}
	needles := map[string][]byte{"the record with the wrapped key": record[8:], "the destruction keys of before": old[50:]}
	for what, needle := range needles {
		if !s.onDisk(needle) {
			t.Fatalf("the scan does not find %s", what)
		}
	}
	s.later(200)
	if r := s.unseal(s.allCards()...); r.code != 0 {
		t.Fatal(r)
	}
	s.eventually("the version is destroyed", func() bool { return s.versionState(7, 1) == "destroyed" })
	for what, needle := range needles {
		s.eventually(what+" is gone from the data directory", func() bool { return !s.onDisk(needle) })
	}
	s.wantError(s.post("/v1/keys/7/decrypt", object{"ciphertext": first}), 409, "key_destroyed")
	s.opens(second, "dGV4dA==")
	s.ok("backup", "epochs", "--out", s.path("epochs.new"))

	b := s.bare()
	var out struct{ Keys, Opened, Destroyed int }
	b.restore(s.cards(), s.path("backup"), "--epochs", s.path("epochs.new"), "-o", "json").json(t, &out)
	if out.Keys != 3 || out.Opened != 3 || out.Destroyed != 1 {
		t.Errorf("restored: %+v", out)
	}
	b.start()
	if r := b.unseal(s.cards()...); r.code != 0 {
		t.Fatal(r)
	}
	b.opens(second, "dGV4dA==")
	b.wantError(b.post("/v1/keys/7/decrypt", object{"ciphertext": first}), 409, "key_destroyed")
	b.encrypt("7", []byte("more"), nil)
	b.ok("key", "rotate", "7")
	b.ok("doctor")

	// What an operator who keeps old copies of the destruction keys gives up.
	c := s.bare()
	if r := c.restore(s.cards(), s.path("backup"), "--epochs", s.path("epochs.old")); r.code != 0 {
		t.Fatal(r)
	}
	c.start()
	if r := c.unseal(s.cards()...); r.code != 0 {
		t.Fatal(r)
	}
	if a := c.post("/v1/keys/7/decrypt", object{"ciphertext": first}); a.code() != "key_disabled" { // its destruction is still ordered
		t.Errorf("with old destruction keys: %d %s", a.status, a.raw)
	}
	c.ok("key", "cancel-destroy", "7")
	c.opens(first, "dGV4dA==")
}

// A death at any moment of a destruction leaves every other version good, and the
// destruction is done after the next start.
func TestDestructionKilled(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	first := s.encrypt("7", []byte("text"), nil)
	for i, point := range []string{"destruction-recorded", "epochs-sealed", "epochs-written", "history-dropped"} {
		version := i + 1
		s.ok("key", "rotate", "7")
		sealed := s.encrypt("7", []byte("text"), nil)
		s.ok("key", "schedule-destroy", "7", "--version", fmt.Sprint(version), "--days", "7")
		record := s.stored("g1/keys/0000000007")[8:]
		// The history is dropped at each start too: that death is one of unsealing.
		s.later(200+2*i, "TRIKEY_FAILPOINT="+point+"=kill")
		_ = s.unseal(s.allCards()...)
		select {
		case <-s.exited:
		case <-time.After(30 * time.Second):
			t.Fatalf("it never came to %s", point)
		}
		s.later(201 + 2*i) // the lease of the one that died is over
		if r := s.unseal(s.allCards()...); r.code != 0 {
			t.Fatalf("after a death at %s: %+v", point, r)
		}
		s.eventually("the version is destroyed", func() bool { return s.versionState(7, version) == "destroyed" })
		s.eventually("the record of before is gone", func() bool { return !s.onDisk(record) })
		s.opens(sealed, "dGV4dA==")
		s.wantError(s.post("/v1/keys/7/decrypt", object{"ciphertext": first}), 409, "key_destroyed")
		if r := s.ok("backup", "create", "--out", s.path("backup-"+point)); !strings.Contains(r.out, fmt.Sprintf("destructions %d", version)) {
			t.Errorf("after %s: %s", point, r.out)
		}
		s.ok("backup", "epochs", "--out", s.path("epochs.copy"))
		s.ok("backup", "drill", s.path("backup-"+point), "--epochs", s.path("epochs.copy"))
		s.kill()
		s.open() // the real time again: what is destroyed stays so
		s.ok("doctor")
	}
}

// What is not as it was made, or does not belong together, is refused by name, and the
// target stays as it was.
func TestBackupRefused(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	file, epochs := s.path("backup"), s.path("epochs.copy")
	s.ok("backup", "create", "--out", file)
	s.ok("backup", "epochs", "--out", epochs)
	s.ok("backup", "epochs", "--out", epochs) // replaces it
	s.refused(1, "already", "backup", "create", "--out", file)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if r := s.ok("backup", "verify", file, "--open", "--fingerprint", s.fingerprint()); !strings.Contains(r.out, "3 keys") || !strings.Contains(r.out, "Every record of it opens") {
		t.Errorf("verify: %s", r.out)
	}
	s.refused(6, "fingerprint", "backup", "verify", file, "--fingerprint", strings.Repeat("0", 64))
	b := s.bare()
	bad := b.path("bad")
	regions := map[string]int{"magic": 3, "header length": 9, "header": 200, "chunk": len(raw) / 2, "manifest": len(raw) - 300, "key": len(raw) - 90, "signature": len(raw) - 1}
	for region, at := range regions {
		changed := bytes.Clone(raw)
		changed[at] ^= 0x20
		b.write(bad, changed)
		for _, args := range [][]string{{"verify", bad}, {"restore", bad, "--epochs", epochs}} {
			if r := b.run(append([]string{"backup"}, args...)...); r.code != 6 || !strings.Contains(r.err, "backup") {
				t.Errorf("%s of a backup with a changed %s: %+v", args[0], region, r)
			}
		}
		s.refused(6, "backup", "backup", "verify", bad)
		b.untouched()
	}
	for _, n := range []int{0, 5, 100, len(raw) / 3, len(raw) - 97, len(raw) - 1, len(raw) + 1} {
		b.write(bad, append(bytes.Clone(raw), 0)[:n])
		if r := b.run("backup", "restore", bad, "--epochs", epochs); r.code != 6 {
			t.Errorf("%d of %d bytes: %+v", n, len(raw), r)
		}
		b.untouched()
	}

	other := openSite(t)
	other.ok("backup", "create", "--out", other.path("backup"))
	other.ok("backup", "epochs", "--out", other.path("epochs.copy"))
	if r := b.restore(s.cards(), other.path("backup"), "--epochs", other.path("epochs.copy")); r.code != 6 || !strings.Contains(r.err, "machine") {
		t.Errorf("another machine's backup, with this one's cards: %+v", r)
	}
	b.untouched()
	if r := b.restore(s.cards(), file, "--epochs", other.path("epochs.copy")); r.code != 6 || !strings.Contains(r.err, "another key store") {
		t.Errorf("another key store's destruction keys: %+v", r)
	}
	s.refused(6, "root", "backup", "verify", "--open", other.path("backup"))
	s.refused(6, "another key store", "backup", "drill", file, "--epochs", other.path("epochs.copy"))
	copied, err := os.ReadFile(epochs)
	if err != nil {
		t.Fatal(err)
	}
	copied[len(copied)-1] ^= 1
	b.write(b.path("bad-epochs"), copied)
	if r := b.restore(s.cards(), file, "--epochs", b.path("bad-epochs")); r.code != 6 || !strings.Contains(r.err, "destruction keys") {
		t.Errorf("changed destruction keys: %+v", r)
	}
	b.untouched()
	if r := b.restore(s.cards()[:2], file, "--epochs", epochs); r.code != 3 || !strings.Contains(r.err, "2 of 3") {
		t.Errorf("two cards: %+v", r)
	}
	b.untouched()
	if r := other.restore(s.cards(), file, "--epochs", epochs); r.code != 1 || !strings.Contains(r.err, "not empty") {
		t.Errorf("a target that is not empty: %+v", r)
	}
	if r := b.restore(s.cards(), file, "--epochs", epochs); r.code != 0 {
		t.Errorf("the good one: %+v", r)
	}
	s.ok("machine", "seal")
	s.refused(3, "sealed", "backup", "create", "--out", s.path("another"))
	if _, err := os.Stat(s.path("another")); err == nil {
		t.Error("a backup that failed has left a file")
	}
}

// Destruction keys that are older than the backup are refused, unless somebody accepts
// that; what the backup says is destroyed stays so then.
func TestBackupRollback(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	first := s.encrypt("7", []byte("text"), nil)
	s.ok("backup", "epochs", "--out", s.path("epochs.old"))
	s.ok("key", "rotate", "7")
	s.ok("key", "schedule-destroy", "7", "--version", "1", "--days", "7")
	s.later(200)
	if r := s.unseal(s.allCards()...); r.code != 0 {
		t.Fatal(r)
	}
	s.eventually("the version is destroyed", func() bool { return s.versionState(7, 1) == "destroyed" })
	s.ok("backup", "create", "--out", s.path("backup"))
	s.refused(6, "destruction 0", "backup", "drill", s.path("backup"), "--epochs", s.path("epochs.old"))
	b := s.bare()
	args := []string{s.path("backup"), "--epochs", s.path("epochs.old")}
	if r := b.restore(s.cards(), args...); r.code != 6 || !strings.Contains(r.err, "--accept-rollback") {
		t.Errorf("older destruction keys: %+v", r)
	}
	b.untouched()
	if r := b.restore(s.cards(), append(args, "--accept-rollback")...); r.code != 0 {
		t.Fatal(r)
	}
	b.start()
	if r := b.unseal(s.cards()...); r.code != 0 {
		t.Fatal(r)
	}
	b.wantError(b.post("/v1/keys/7/decrypt", object{"ciphertext": first}), 409, "key_destroyed")
}

// Backups that are made while keys are made and changed are each of one moment: every
// record of them opens and is the newest by the index of that moment.
func TestBackupUnderLoad(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				index := fmt.Sprint(300 + 10*n + i)
				for _, args := range [][]string{{"create", "--index", index}, {"rotate", index}} {
					if r := s.run(append([]string{"key"}, args...)...); r.code != 0 {
						t.Errorf("%v: %+v", args, r)
						return
					}
				}
				s.encrypt("7", []byte("x"), nil)
			}
		})
	}
	for i := range 5 {
		s.ok("backup", "create", "--out", s.path(fmt.Sprint("backup", i)))
	}
	stop()
	wg.Wait()
	s.ok("backup", "epochs", "--out", s.path("epochs.copy"))
	most := 0
	for i := range 5 {
		file := s.path(fmt.Sprint("backup", i))
		s.ok("backup", "verify", "--open", file)
		var out struct{ Keys, Opened, Destroyed int }
		s.ok("backup", "drill", file, "--epochs", s.path("epochs.copy"), "-o", "json").json(t, &out)
		if out.Keys < most || out.Opened < out.Keys || out.Destroyed != 0 {
			t.Errorf("backup %d: %+v, after %d keys", i, out, most)
		}
		most = out.Keys
	}
	if most < 4 {
		t.Errorf("nothing was written meanwhile: %d keys", most)
	}
	if m := s.metrics(); !strings.Contains(m, "trikey_backup_age_seconds ") || strings.Contains(m, "trikey_backup_age_seconds 1.7") {
		t.Error("the metrics do not tell of the backup")
	}
	s.ok("doctor")
}
