package audit_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/audit"
)

const first = "events-0000000000000000.jsonl"

// filled makes a log of events, with a checkpoint in the middle and one at the end, and
// returns its directory, its key and the checkpoint of the middle.
func filled(t *testing.T, change ...func(*audit.Config)) (dir string, k key, middle []byte) {
	t.Helper()
	dir, k = t.TempDir(), newKey(t)
	for part := range 2 {
		l := open(t, dir, k, change...)
		for i := range 10 {
			if _, err := l.Record(event(fmt.Sprintf("op-%d-%d", part, i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if part == 0 {
			middle = read(t, dir, "checkpoint")
		}
	}
	return dir, k, middle
}

func read(t *testing.T, name ...string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(name...))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func write(t *testing.T, raw []byte, name ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(name...), raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// lines changes the lines of the events.
func lines(t *testing.T, dir string, change func([]string) []string) {
	t.Helper()
	all := strings.SplitAfter(strings.TrimSuffix(string(read(t, dir, first)), "\n"), "\n")
	all[len(all)-1] += "\n"
	write(t, []byte(strings.Join(change(all), "")), dir, first)
}

func verify(dir string, k key, o audit.VerifyOptions) (audit.Result, error) {
	public, _ := k.AuditKey(context.Background())
	o.Fingerprints = []string{audit.Fingerprint(public)}
	return audit.Verify(dir, o)
}

// TestAltered does to a log what somebody who owns the host can do. Each is caught, and
// named, by verify; and where the service would write on, when it opens the log.
func TestAltered(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		do    func(t *testing.T, dir string, k key)
		since bool   // only a checkpoint that was kept elsewhere shows it
		want  string // of verify
		opens bool   // a service opens the log all the same: it reads the end only
	}{
		"edited": {func(t *testing.T, dir string, _ key) {
			lines(t, dir, func(l []string) []string { l[5] = strings.Replace(l[5], "10.0.0.1", "10.0.0.9", 1); return l })
		}, false, "event 5 was edited", false},
		"edited with its hash": {func(t *testing.T, dir string, _ key) {
			lines(t, dir, func(l []string) []string { l[5] = strings.Replace(l[5], "10.0.0.1", "10.0.0.9", 1); return l })
			_ = os.Remove(filepath.Join(dir, "hashes"))
		}, false, "one of the events 1 to 10 was edited", false},
		"deleted": {func(t *testing.T, dir string, _ key) {
			lines(t, dir, func(l []string) []string { return append(l[:7], l[8:]...) })
		}, false, "event 7 was deleted: event 8 stands in its place", false},
		"reordered": {func(t *testing.T, dir string, _ key) {
			lines(t, dir, func(l []string) []string { l[3], l[4] = l[4], l[3]; return l })
		}, false, "reordered: event 4 stands in the place of event 3", false},
		"repeated": {func(t *testing.T, dir string, _ key) {
			lines(t, dir, func(l []string) []string { l[4] = l[3]; return l })
		}, false, "event 3 was reordered or repeated", false},
		"truncated": {func(t *testing.T, dir string, _ key) { lines(t, dir, func(l []string) []string { return l[:15] }) }, false, "truncated: events 15 to 20 are missing", false},
		"cut in a line": {func(t *testing.T, dir string, _ key) {
			raw := read(t, dir, first)
			write(t, raw[:len(raw)-5], dir, first)
		}, false, "truncated: events 20 to 20 are missing", false},
		"no events":     {func(_ *testing.T, dir string, _ key) { _ = os.Remove(filepath.Join(dir, first)) }, false, "every event was deleted", false},
		"no checkpoint": {func(_ *testing.T, dir string, _ key) { _ = os.Remove(filepath.Join(dir, "checkpoint")) }, false, "checkpoint is missing", false},
		"another signature": {func(t *testing.T, dir string, _ key) {
			other, _, _ := filled(t)
			write(t, read(t, other, "checkpoint"), dir, "checkpoint")
		}, false, "not signed by a key that is trusted", false},
		"garbage": {func(t *testing.T, dir string, _ key) {
			lines(t, dir, func(l []string) []string { l[2] = "{\n"; return l })
		}, false, "event 2 was edited: it is not an event any more", false},
		"put back": {func(t *testing.T, dir string, k key) {
			rollBack(t, dir, k, 3)
		}, true, "truncated or forked: events 4 to 10 are missing", true},
		"forked": {func(t *testing.T, dir string, k key) {
			rollBack(t, dir, k, 20)
		}, true, "forked", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, k, middle := filled(t)
			if _, err := verify(dir, k, audit.VerifyOptions{Since: middle}); err != nil {
				t.Fatalf("before: %v", err)
			}
			test.do(t, dir, k)
			o := audit.VerifyOptions{}
			if test.since {
				if _, err := verify(dir, k, o); err != nil {
					t.Errorf("a log that is whole in itself: %v", err)
				}
				o.Since = middle
			}
			if _, err := verify(dir, k, o); !errors.Is(err, fault.AuditAltered) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("verify: %v, want %q", err, test.want)
			}
			l := open(t, dir, k)
			if _, err := l.Record(event("after")); (err == nil) != test.opens {
				t.Errorf("writing on: %v", err)
			}
		})
	}
}

// rollBack makes another log with the same key, of so many events: what somebody does
// who owns the host, and the chip with it.
func rollBack(t *testing.T, dir string, k key, events int) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	l := open(t, dir, k)
	for range events {
		if _, err := l.Record(event("other")); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTouchedWhileRunning: what others do to the files under a log that is written.
func TestTouchedWhileRunning(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		do   func(t *testing.T, dir string)
		want string
	}{
		"deleted":     {func(_ *testing.T, dir string) { _ = os.Remove(filepath.Join(dir, first)) }, "deleted under the running service"},
		"all deleted": {func(_ *testing.T, dir string) { _ = os.RemoveAll(dir) }, "deleted under the running service"},
		"replaced": {func(t *testing.T, dir string) {
			raw := read(t, dir, first)
			_ = os.Remove(filepath.Join(dir, first))
			write(t, raw, dir, first)
		}, "replaced under the running service"},
		"appended": {func(t *testing.T, dir string) { write(t, append(read(t, dir, first), "{}\n"...), dir, first) }, "somebody else"},
		"edited in place": {func(t *testing.T, dir string) {
			f, err := os.OpenFile(filepath.Join(dir, first), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = f.WriteAt([]byte("X"), 50)
			_ = f.Close()
			later := time.Now().Add(time.Second)
			_ = os.Chtimes(f.Name(), later, later)
		}, "somebody else"},
		"hashes": {func(_ *testing.T, dir string) { _ = os.Truncate(filepath.Join(dir, "hashes"), 32) }, "somebody else"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			l := open(t, dir, newKey(t))
			if _, err := l.Record(event("before")); err != nil {
				t.Fatal(err)
			}
			test.do(t, dir)
			if _, err := l.Record(event("after")); !errors.Is(err, fault.AuditBlocked) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if _, err := l.Begin(t.Context(), event("change")); !errors.Is(err, fault.AuditBlocked) {
				t.Errorf("management goes on: %v", err)
			}
			if l.Ready() == nil || l.Operation(event("encrypt")) == nil {
				t.Error("the data plane goes on")
			}
		})
	}
}

// TestTorn cuts the end of the events at every byte after the last checkpoint: the log
// goes on from the last whole event.
func TestTorn(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newKey(t)
	l := open(t, dir, k)
	signed := len(read(t, dir, first))
	for i := range 2 {
		if _, err := l.Record(event(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	all, checkpoint := read(t, dir, first), read(t, dir, "checkpoint")
	history, hashes, keys := read(t, dir, "checkpoints.jsonl"), read(t, dir, "hashes"), read(t, dir, "keys")
	for cut := signed; cut <= len(all); cut += 7 {
		crashed := t.TempDir()
		write(t, all[:cut], crashed, first)
		write(t, checkpoint, crashed, "checkpoint")
		write(t, append(bytes.Clone(history), `{"time":"20`...), crashed, "checkpoints.jsonl")
		write(t, hashes[:len(hashes)-cut%len(hashes)], crashed, "hashes")
		write(t, keys, crashed, "keys")
		again := open(t, crashed, k)
		if _, err := again.Record(event("after")); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := verify(crashed, k, audit.VerifyOptions{Since: checkpoint})
		if err != nil || r.Signed != r.Events {
			t.Fatalf("cut at %d: %+v, %v", cut, r, err)
		}
		whole := bytes.Count(all[:cut], []byte("\n"))
		if kept := bytes.Count(read(t, crashed, first), []byte("\n")); kept < whole+1 {
			t.Errorf("cut at %d: %d whole events were there, %d are", cut, whole, kept)
		}
	}
}

// TestManyCallers: every event that was acknowledged is there, one fdatasync answers
// several callers, and the files are changed as they grow.
func TestManyCallers(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newKey(t)
	l := open(t, dir, k, func(c *audit.Config) { c.SegmentSize, c.Every = 20_000, 100 })
	const callers, each = 32, 50
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for i := range each {
				if err := l.Operation(event("encrypt"), event(fmt.Sprint(i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s := l.Stats()
	if s.Syncs >= callers*each {
		t.Errorf("%d syncs for %d calls: nothing was shared", s.Syncs, callers*each)
	}
	// While it is written.
	if r, err := verify(dir, k, audit.VerifyOptions{}); err != nil || r.Events != 2*callers*each+1 {
		t.Errorf("%+v, %v", r, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "events-*.jsonl"))
	if len(files) < 10 {
		t.Errorf("only %d files", len(files))
	}
	// A log that was closed is signed to its end, and opens again.
	again := open(t, dir, k)
	if _, err := again.Record(event("again")); err != nil {
		t.Error(err)
	}
	if r, err := verify(dir, k, audit.VerifyOptions{}); err != nil || r.Signed != 2*callers*each+1 || r.Checkpoints < 3 {
		t.Errorf("%+v, %v", r, err)
	}
	// A file in the middle is taken away, then those at the start are kept elsewhere.
	if err := os.Rename(files[3], files[3]+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := verify(dir, k, audit.VerifyOptions{}); err == nil || !strings.Contains(err.Error(), "were deleted") {
		t.Errorf("without a file: %v", err)
	}
	for _, f := range files[:3] {
		_ = os.Remove(f)
	}
	var from int64
	_, _ = fmt.Sscanf(filepath.Base(files[4]), "events-%d.jsonl", &from)
	if _, err := verify(dir, k, audit.VerifyOptions{}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("--from %d", from)) {
		t.Errorf("without the oldest files: %v", err)
	}
	if r, err := verify(dir, k, audit.VerifyOptions{From: from}); err != nil || r.From != from {
		t.Errorf("from %d: %+v, %v", from, r, err)
	}
}

// TestReceipt proves a change, after the log has grown, and to somebody who has the
// receipt and the key only.
func TestReceipt(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newKey(t)
	l := open(t, dir, k)
	m, err := l.Begin(audit.WithActor(t.Context(), "alice"), audit.Event{Kind: audit.Admin, Op: "create"})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.End(audit.OK, nil); err != nil {
		t.Fatal(err)
	}
	receipt, err := m.Receipt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw := receipt.Marshal()
	if _, err := l.Record(event("later"), event("later")); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	r, err := verify(dir, k, audit.VerifyOptions{Receipt: raw})
	if err != nil || r.Receipt == nil || r.Receipt.Actor != "alice" || r.Receipt.Of != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	keys := audit.VerifyOptions{Keys: string(read(t, dir, "keys"))}
	if r, err := audit.CheckReceipt(raw, keys); err != nil || r.Receipt.Op != "create" {
		t.Errorf("alone: %+v, %v", r, err)
	}
	for i := 0; i < len(raw); i += 3 {
		if padded(raw, i) {
			continue
		}
		bad := bytes.Clone(raw)
		bad[i] ^= 1
		if r, err := audit.CheckReceipt(bad, keys); err == nil {
			t.Errorf("byte %d changed: %+v", i, r)
		}
	}
	other, otherKey, _ := filled(t)
	if _, err := verify(other, otherKey, audit.VerifyOptions{Receipt: raw}); err == nil {
		t.Error("another log has the event")
	}
}

// padded reports whether byte i is the last digit of base64 before its padding: the lowest
// bits of that digit mean nothing, and a hash or signature written with others is the same.
func padded(b []byte, i int) bool { return i+1 < len(b) && b[i+1] == '=' }

// TestExport verifies what was exported, whole and in part, and finds what was changed.
func TestExport(t *testing.T) {
	t.Parallel()
	dir, k, middle := filled(t)
	for _, from := range []int64{0, 1, 7, 16, 21} {
		var out bytes.Buffer
		n, err := audit.Export(dir, from, &out)
		if err != nil || n != 21-from {
			t.Fatalf("from %d: %d, %v", from, n, err)
		}
		file := filepath.Join(t.TempDir(), "export")
		write(t, out.Bytes(), file)
		if r, err := verify(file, k, audit.VerifyOptions{Since: middle}); err != nil || r.Events != 21 || r.From != from {
			t.Fatalf("from %d: %+v, %v", from, r, err)
		}
		for i := 0; i < out.Len(); i += 11 {
			if padded(out.Bytes(), i) {
				continue
			}
			bad := bytes.Clone(out.Bytes())
			bad[i] ^= 1
			write(t, bad, file)
			// The key that the export brings along may be changed: it is not used.
			o := audit.VerifyOptions{Keys: string(read(t, dir, "keys"))}
			if r, err := verify(file, k, o); err == nil && !bytes.Contains(out.Bytes()[max(0, i-150):i+1], []byte(`"keys"`)) {
				t.Errorf("from %d, byte %d changed: …%s…: %+v", from, i, bad[max(0, i-150):min(len(bad), i+50)], r)
			}
		}
	}
}

// TestModes: what the data plane waits for, and what becomes of it when nothing can be
// recorded.
func TestModes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	off := open(t, dir, newKey(t), func(c *audit.Config) { c.Data = audit.Off })
	if err := off.Operation(event("encrypt")); err != nil || off.Stats().Events != 1 {
		t.Errorf("off: %v, %d events", err, off.Stats().Events)
	}
	k := newKey(t)
	dir = t.TempDir()
	async := open(t, dir, k, func(c *audit.Config) { c.Data, c.OnFailure = audit.Async, audit.Open })
	for range 100 {
		if err := async.Operation(event("encrypt")); err != nil {
			t.Fatal(err)
		}
	}
	_ = async.Close()
	if r, err := verify(dir, k, audit.VerifyOptions{}); err != nil || r.Events != 101 {
		t.Errorf("async: %+v, %v", r, err)
	}
	lossy := open(t, dir, k, func(c *audit.Config) { c.OnFailure = audit.Open })
	_ = os.RemoveAll(dir)
	if err := lossy.Operation(event("encrypt"), event("encrypt")); err != nil || lossy.Ready() != nil || lossy.Stats().Lost != 2 || !lossy.Stats().Blocked {
		t.Errorf("open on failure: %v, %+v", err, lossy.Stats())
	}
	if _, err := lossy.Begin(t.Context(), event("change")); err == nil {
		t.Error("management goes on")
	}
	var none *audit.Log
	if _, err := none.Record(event("x")); err != nil || none.Ready() != nil || none.Close() != nil {
		t.Error("no log is no failure")
	}
}

// TestFailures: of many failures that are alike, few events are made, and none is lost.
func TestFailures(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newKey(t)
	l := open(t, dir, k)
	for range 500 {
		if err := l.Failure(audit.Event{Op: "encrypt", Address: "10.0.0.1", Outcome: "unauthorized"}); err != nil {
			t.Fatal(err)
		}
	}
	_ = l.Failure(audit.Event{Op: "encrypt", Address: "10.0.0.2", Outcome: "unauthorized"})
	_ = l.Close()
	items, events := 0, 0
	_, err := verify(dir, k, audit.VerifyOptions{Each: func(e audit.Event) {
		if e.Kind == audit.Auth {
			events++
			items += e.Items
		}
	}})
	if err != nil || items != 501 || events > 10 {
		t.Errorf("%d failures in %d events, %v", items, events, err)
	}
}

// TestNewKey: after the machine was destroyed it signs with another key. The log goes
// on, and verifies with the new key.
func TestNewKey(t *testing.T) {
	t.Parallel()
	dir, _, middle := filled(t)
	fresh := newKey(t)
	l := open(t, dir, fresh)
	if _, err := l.Record(event("after")); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if r, err := verify(dir, fresh, audit.VerifyOptions{}); err != nil || r.Signed != r.Events || r.Events != 23 {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := audit.Verify(dir, audit.VerifyOptions{Since: middle}); err != nil || len(r.Fingerprints) != 2 {
		t.Errorf("with both: %+v, %v", r, err)
	}
}

// TestShip hands checkpoints to each kind of sink; one that fails holds nothing up, and
// gets the newest when it is back.
func TestShip(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var posted []byte
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		posted, _ = io.ReadAll(r.Body)
	}))
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), ca)
	webhook, err := audit.NewWebhookSink(server.URL+"/secret-path", ca)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "log")
	daemon, err := net.ListenPacket("unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = daemon.Close() })
	file := filepath.Join(t.TempDir(), "checkpoints.jsonl")
	dir, k := t.TempDir(), newKey(t)
	l := open(t, dir, k, func(c *audit.Config) {
		c.Sinks = []audit.Sink{audit.FileSink{Path: file}, webhook, audit.SyslogSink{Path: socket}, audit.FileSink{Path: "/nonexistent/x"}}
	})
	if _, err := l.Record(event("x")); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	newest := read(t, dir, "checkpoint")
	mu.Lock()
	if !bytes.Equal(posted, newest) {
		t.Errorf("posted %q", posted)
	}
	mu.Unlock()
	datagram := make([]byte, 4096)
	_ = daemon.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, _, err := daemon.ReadFrom(datagram)
	if err != nil || !bytes.Contains(datagram[:n], []byte("trikey-audit")) || !bytes.Contains(datagram[:n], []byte(`trikey/v1/audit/`)) {
		t.Errorf("syslog: %q, %v", datagram[:n], err)
	}
	if r, err := verify(dir, k, audit.VerifyOptions{Since: read(t, file)}); err != nil || r.Checkpoints < 2 {
		t.Errorf("the file's checkpoints: %+v, %v", r, err)
	}
	s := l.Stats().Shipped
	if s[webhook.Name()].Size != 2 || s["file:/nonexistent/x"].Err == nil || strings.Contains(webhook.Name(), "secret") {
		t.Errorf("%+v", s)
	}
	if _, err := audit.NewWebhookSink("http://127.0.0.1/", ""); err == nil {
		t.Error("a webhook without TLS is taken")
	}
}
