package main_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
)

// auditLog is the text of every event.
func (s *site) auditLog() string {
	s.t.Helper()
	files, err := filepath.Glob(s.path("data", "audit", "events-*.jsonl"))
	if err != nil || len(files) == 0 {
		s.t.Fatalf("no events: %v", err)
	}
	var all bytes.Buffer
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			s.t.Fatal(err)
		}
		all.Write(raw)
	}
	return all.String()
}

// stop ends the service as an operator does.
func (s *site) stop() {
	s.t.Helper()
	if err := s.serve.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	<-s.exited
	if !s.serve.ProcessState.Success() {
		s.t.Errorf("the service ended with %s:\n%s", s.serve.ProcessState, s.log)
	}
	s.serve = nil
	s.client.CloseIdleConnections()
}

// fingerprint is that of the machine's key, as an operator notes it.
func (s *site) fingerprint() string {
	s.t.Helper()
	var status struct{ Fingerprint string }
	s.ok("machine", "status", "-o", "json").json(s.t, &status)
	return status.Fingerprint
}

// TestAuditOfEverything: what is done is in the log, by whom and how it ended; what was
// said, and every secret, is not. The receipt of a change proves it.
func TestAuditOfEverything(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	shipped := s.path("shipped.jsonl")
	s.start("TRIKEY_AUDIT_SHIP=[{file: " + shipped + "}]")
	s.unseal("wrong-pin-file", "1")
	if r := s.unseal("1", "2", "3"); r.code != 0 {
		t.Fatalf("unseal: %+v", r)
	}
	fingerprint := s.fingerprint()
	receipt := s.path("key.tlog-proof")
	s.ok("key", "create", "--index", "7", "--name", "chat", "--save-receipt", receipt)
	s.ok("key", "create", "--index", "8", "--name", "other")
	s.createApp("im", "127.0.0.1/32", "keys=1-7;ops="+allOps)
	if r := s.run("key", "create", "--index", "7"); r.code == 0 {
		t.Error("an index is taken twice")
	}
	const word, place = "canary-plaintext-4711", "canary-conversation-4711"
	context := object{"conversation": place}
	sealed := s.encrypt("7", []byte(word), context)
	s.post("/v1/keys/chat/decrypt", object{"ciphertext": sealed, "context": context})
	s.post("/v1/keys/chat/decrypt", object{"ciphertext": sealed, "context": object{"conversation": "canary-elsewhere-4711"}})
	s.post("/v1/keys/8/encrypt", object{"plaintext": []byte(word)})
	s.post("/v1/keys/canary-as-a-name-4711/encrypt", object{"plaintext": []byte(word)})
	s.post("/v1/reencrypt", object{"ciphertext": sealed, "context": context})
	items := []object{}
	for i := range 10 {
		items = append(items, object{"key": 7 + i%2, "plaintext": []byte(word), "context": context, "reference": "canary-reference-4711"})
	}
	s.post("/v1/batch/encrypt", object{"items": items})
	s.post("/v1/stream/7/encrypt", []byte(word), "Content-Type", "application/octet-stream")
	key, secret := s.key, s.secret
	s.key = "canary-app-key-4711"
	s.wantError(s.post("/v1/keys/7/encrypt", object{"plaintext": ""}), 401, "unauthorized")
	s.key, s.secret = key, "canary-secret-4711"
	s.wantError(s.post("/v1/keys/7/encrypt", object{"plaintext": ""}), 401, "unauthorized")
	s.secret = secret
	s.ok("machine", "seal")
	s.stop()

	log := s.auditLog()
	for _, want := range []string{
		`"op":"commit"`, `"kind":"service","op":"start"`, `"op":"present","phase":"begin"`, `"outcome":"ok","details":{"have":"3","need":"3","state":"open"}`,
		`"op":"POST /admin/v1/keys","phase":"begin","actor":"uid:`, `"index":"7","name":"chat"`,
		`"outcome":"conflict"`, `"op":"POST /admin/v1/apps"`, `"grants":"[\"keys=1-7;ops=`,
		`"op":"encrypt","actor":"im","address":"127.0.0.1","key":7,"version":1,"items":1,"outcome":"ok"`,
		`"op":"decrypt","actor":"im","address":"127.0.0.1","key":7,"version":1,"items":1,"outcome":"decrypt_failed"`,
		`"op":"encrypt","actor":"im","address":"127.0.0.1","key":8,"items":1,"outcome":"forbidden"`,
		`"op":"encrypt","actor":"im","address":"127.0.0.1","items":1,"outcome":"forbidden"`,
		`"op":"reencrypt","actor":"im","address":"127.0.0.1","key":7,"version":1,"items":1,"outcome":"ok"`,
		`"op":"batch_encrypt","actor":"im","address":"127.0.0.1","key":7,"version":1,"items":5,"outcome":"ok"`,
		`"op":"batch_encrypt","actor":"im","address":"127.0.0.1","key":8,"items":5,"outcome":"forbidden"`,
		`"op":"stream_encrypt","phase":"end","actor":"im","address":"127.0.0.1","key":7,"version":1,"items":1,"outcome":"ok"`,
		`"kind":"auth","op":"encrypt","address":"127.0.0.1","items":1,"outcome":"unauthorized"`,
		`"kind":"auth","op":"encrypt","actor":"` + key + `"`, `"op":"seal","phase":"end"`, `"kind":"service","op":"stop"`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	pins := []string{"1", "2", "3", "chip"}
	forbidden := []string{"canary", base64.StdEncoding.EncodeToString([]byte(word)), secret, sealed, sealed[10:60]}
	for _, p := range pins {
		raw, err := os.ReadFile(s.path("pins", p))
		if err != nil {
			t.Fatal(err)
		}
		forbidden = append(forbidden, strings.TrimSpace(string(raw)))
	}
	for _, f := range forbidden {
		if i := strings.Index(log, f); i >= 0 {
			t.Errorf("the log has %q: %s", f, log[max(0, i-200):i+50])
		}
	}
	verify := []string{"audit", "verify", "--fingerprint", fingerprint, "--since", shipped}
	s.ok(append(verify, "--receipt", receipt)...)
	if r := run(t, nil, nil, "audit", "verify", "--key", s.path("data", "audit", "keys"), "--receipt", receipt, "-o", "json"); r.code != 0 || !strings.Contains(r.out, "POST /admin/v1/keys") {
		t.Errorf("the receipt alone: %+v", r)
	}
	s.ok("audit", "export", "--out", s.path("export"))
	if r := run(t, nil, nil, "audit", "verify", s.path("export"), "--fingerprint", fingerprint); r.code != 0 {
		t.Errorf("the export: %+v", r)
	}
	if r := s.ok("audit", "tail", "-n", "3"); strings.Count(r.out, "\n") != 3 || !strings.Contains(r.out, "stop") {
		t.Errorf("tail: %s", r.out)
	}
	s.altered(verify)
}

// altered changes the log of a service that does not run, as root can, one way after
// another.
func (s *site) altered(verify []string) {
	s.t.Helper()
	path := s.path("data", "audit", "events-0000000000000000.jsonl")
	original, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	lines := strings.SplitAfter(string(original), "\n")
	for want, change := range map[string]func(l []string) []string{
		"event 20 was edited":             func(l []string) []string { l[20] = strings.Replace(l[20], "uid:", "uid:9", 1); return l },
		"event 12 was deleted":            func(l []string) []string { return append(l[:12], l[13:]...) },
		"event 16 stands in the place of": func(l []string) []string { l[15], l[16] = l[16], l[15]; return l },
		"events 25 to":                    func(l []string) []string { return l[:25] },
	} {
		if err := os.WriteFile(path, []byte(strings.Join(change(append([]string(nil), lines...)), "")), 0o600); err != nil {
			s.t.Fatal(err)
		}
		if r := s.run(verify...); r.code != 6 || !strings.Contains(r.err, want) {
			s.t.Errorf("want %q: %+v", want, r)
		}
		if r := s.run("doctor"); r.code != 6 || !strings.Contains(r.out, want) {
			s.t.Errorf("doctor, want %q: %+v", want, r)
		}
	}
	// The whole log is replaced by another one of the same machine.
	if err := os.RemoveAll(s.path("data", "audit")); err != nil {
		s.t.Fatal(err)
	}
	s.start()
	s.stop()
	s.ok("audit", "verify")
	if r := s.run(verify...); r.code != 6 || !strings.Contains(r.err, "truncated or forked") && !strings.Contains(r.err, "forked") {
		s.t.Errorf("forked: %+v", r)
	}
}

// TestAuditBlocked: where nothing can be recorded nothing is done; and when there is
// room again, all goes on.
func TestAuditBlocked(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)
	info, err := os.Stat(s.path("data", "audit", "events-0000000000000000.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	// No file may grow beyond this: what a full disk looks like to the log.
	limit := func(size uint64) {
		if err := unix.Prlimit(s.serve.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: unix.RLIM_INFINITY}, nil); err != nil {
			t.Fatal(err)
		}
	}
	limit(uint64(info.Size()))
	s.wantError(s.post("/v1/keys/7/encrypt", object{"plaintext": ""}), 503, "audit_blocked")
	if r := s.run("key", "create", "--index", "8"); r.code != 3 || !strings.Contains(r.err, "audit log") {
		t.Errorf("a change that is not recorded: %+v", r)
	}
	if live, ready := s.ready(); live != 200 || ready != 503 {
		t.Errorf("blocked: livez %d, readyz %d", live, ready)
	}
	if m := s.metrics(); !strings.Contains(m, "trikey_audit_blocked 1") {
		t.Error("the metrics do not tell that the log is blocked")
	}
	limit(unix.RLIM_INFINITY)
	s.eventually("the log goes on", func() bool { _, ready := s.ready(); return ready == 200 })
	s.encrypt("7", []byte("x"), nil)
	var list []struct{ Index int }
	s.ok("key", "list", "-o", "json").json(t, &list)
	if len(list) != 1 {
		t.Errorf("%d keys: one was made unrecorded", len(list))
	}
	if !strings.Contains(s.auditLog(), `"op":"resumed"`) {
		t.Error("the log does not tell that it was blocked")
	}
	// The log is deleted under the service. It can still be sealed.
	if err := os.RemoveAll(s.path("data", "audit")); err != nil {
		t.Fatal(err)
	}
	s.eventually("the deletion is noticed", func() bool { _, ready := s.ready(); return ready == 503 })
	s.wantError(s.post("/v1/keys/7/encrypt", object{"plaintext": ""}), 503, "audit_blocked")
	if r := s.run("key", "create", "--index", "9"); r.code != 3 {
		t.Errorf("a change without a log: %+v", r)
	}
	s.ok("machine", "seal")
}

func (s *site) metrics() string {
	s.t.Helper()
	res, err := http.Get(s.ops + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(raw)
}

func (s *site) eventually(what string, f func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not in time: %s", what)
		}
	}
}

// TestAuditKill kills the service under load, again and again: every call that was
// answered is in the log, and the log stays whole.
func TestAuditKill(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)
	var answered atomic.Int64
	for round := range 3 {
		var callers sync.WaitGroup
		for range 8 {
			callers.Go(func() {
				for {
					if _, ok := s.tryEncrypt(7); !ok {
						return
					}
					answered.Add(1)
				}
			})
		}
		want := int64(300 * (round + 1))
		s.eventually("calls are answered", func() bool { return answered.Load() >= want })
		_ = s.serve.Process.Kill()
		callers.Wait()
		s.kill()
		s.open()
	}
	recorded := int64(strings.Count(s.auditLog(), `"op":"encrypt","actor":"im","address":"127.0.0.1","key":7,"version":1,"items":1,"outcome":"ok"`))
	if recorded < answered.Load() {
		t.Errorf("%d calls were answered, %d are recorded", answered.Load(), recorded)
	}
	s.ok("audit", "verify", "--fingerprint", s.fingerprint())
	s.ok("doctor")
}

// TestRecordPutBack puts an older state of a record back into the key store, takes one
// out, and brings a deleted one back: each is refused by name.
func TestRecordPutBack(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=1-99;ops="+allOps)
	s.stop()
	store := func(f func(keystore.Store) error) {
		t.Helper()
		db, err := bolt.Open(bolt.Config{Path: s.path("data", "store.db")})
		if err != nil {
			t.Fatal(err)
		}
		if err := f(db); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	const app = "g1/apps/app/im"
	older := s.read("data", "store.db")
	var wide keystore.Entry
	store(func(db keystore.Store) (err error) { wide, err = db.Get(t.Context(), app); return err })
	s.open()
	s.ok("app", "revoke", "im", "keys=1-99;ops=decrypt")
	s.ok("doctor")
	s.stop()
	s.ok("doctor")

	whole, err := os.ReadFile(s.path("data", "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]keystore.Write{
		"record apps/app/im: it is change 1":             {Name: app, Value: wide.Value},
		"record keys/0000000007: missing":                {Name: "g1/keys/0000000007", Delete: true},
		"record apps/app/two: the service did not write": {Name: "g1/apps/app/two", Value: wide.Value},
		"record revisions/":                              {Name: "g1/revisions/summary", Delete: true},
	} {
		if err := os.WriteFile(s.path("data", "store.db"), whole, 0o600); err != nil {
			t.Fatal(err)
		}
		store(func(db keystore.Store) error { _, err := db.Txn(t.Context(), nil, []keystore.Write{write}); return err })
		s.start()
		if r := s.unseal("1", "2", "3"); r.code == 0 || !strings.Contains(r.err, name) {
			t.Errorf("want %q: %+v", name, r)
		}
		if _, ready := s.ready(); ready != 503 {
			t.Errorf("%s: it is served", name)
		}
		if r := s.run("doctor"); r.code != 6 || !strings.Contains(r.out, name) {
			t.Errorf("doctor: want %q: %+v", name, r)
		}
		s.stop()
	}
	// Something that is no record is seen from outside.
	if err := os.WriteFile(s.path("data", "store.db"), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	store(func(db keystore.Store) error {
		_, err := db.Txn(t.Context(), nil, []keystore.Write{{Name: "g1/keys/0000000009", Value: []byte("x")}})
		return err
	})
	var report struct {
		Checks []struct{ State, Detail string }
	}
	r := s.run("doctor", "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &report); err != nil || r.code != 6 || !strings.Contains(fmt.Sprint(report.Checks), "record keys/0000000009: not a sealed record") {
		t.Errorf("doctor: %+v, %v", r, err)
	}
	// The whole store of before is served, as a backup is; doctor tells of it, where the
	// newer one was once begun with.
	s.write(s.path("data", "store.db"), whole)
	s.open()
	s.stop()
	s.write(s.path("data", "store.db"), older)
	s.open()
	if r := s.run("doctor"); r.code != 6 || !strings.Contains(r.out, "the whole store was put back") {
		t.Errorf("doctor: %+v", r)
	}
}
