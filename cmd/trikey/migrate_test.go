package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// seal encrypts many plaintexts under a key; the context of the n-th has its number.
func (s *site) seal(key string, n int) (all []string) {
	s.t.Helper()
	for from := 0; from < n; from += 1000 {
		items := make([]object, 0, 1000)
		for i := from; i < min(n, from+1000); i++ {
			items = append(items, object{"key": key, "plaintext": fmt.Appendf(nil, "m%d", i), "context": object{"app": "im", "conv": fmt.Sprint(i)}})
		}
		for _, it := range s.items("/v1/batch/encrypt", items) {
			all = append(all, it.Ciphertext)
		}
	}
	return all
}

type batchItem struct {
	Ciphertext, Plaintext string
	Key, Version          int
	Error                 *struct{ Code string }
}

func (s *site) items(path string, items []object) []batchItem {
	s.t.Helper()
	a := s.post(path, object{"items": items})
	var out struct{ Items []batchItem }
	if err := json.Unmarshal(a.raw, &out); err != nil || len(out.Items) != len(items) {
		s.t.Fatalf("%s: %d %.300s", path, a.status, a.raw)
	}
	return out.Items
}

// opensAs sees that ciphertexts, by the number in their context, are under a key and
// open.
func (s *site) opensAs(key int, byNumber map[int]string) {
	s.t.Helper()
	var items []object
	var want []string
	check := func() {
		for i, it := range s.items("/v1/batch/decrypt", items) {
			if it.Plaintext != want[i] || it.Key != key {
				s.t.Errorf("%v: %+v", items[i]["context"], it)
			}
		}
		items, want = nil, nil
	}
	for n, c := range byNumber {
		items = append(items, object{"ciphertext": c, "context": object{"app": "im", "conv": fmt.Sprint(n)}})
		want = append(want, b64(fmt.Sprintf("m%d", n)))
		if len(items) == 1000 {
			check()
		}
	}
	check()
}

type migration struct {
	Files, Lines, Reencrypted, Skipped, Without int
	FailedLines                                 int `json:"failed_lines"`
	Failed                                      map[string]int
	Complete                                    bool
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestMigrate re-encrypts a directory of both kinds of files, in which every kind of
// line is found.
func TestMigrate(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	env, dir := s.appEnv(), t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.MkdirAll(filepath.Join(in, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	of7, of8 := s.seal("7", 6), s.seal("8", 1)
	broken := of7[0][:len(of7[0])-6] + "AAAAAA"
	lines := []string{
		`{"conv":"0" , "body":{"c":"` + of7[0] + `"},"n":1.50}`,
		`  {"body":{"x":[{"c":"no"}],"c":"` + of7[1] + `"},"conv":1}  `,
		`{"conv":"0","body":{"c":"` + of8[0] + `"}}`,
		`{"conv":"0","body":{}}`, `{"conv":"0"}`, `{"conv":"0","body":{"c":null}}`, ``,
		`{"conv":"0","body":{"c":"` + broken + `"}}`,
		`{"conv":"9","body":{"c":"` + of7[0] + `"}}`,
		`{"body":{"c":"` + of7[0] + `"}}`,
		`{"conv":"0","body":{"c":"plain words"}}`,
		`{"conv":"0","body":{"c":"` + of7[0] + `"`,
		`{"conv":"2","body":{"c":"` + of7[2] + `"}}`,
	}
	text := strings.Join(lines, "\n") // no line end after the last
	write(t, filepath.Join(in, "messages.jsonl"), text)
	table := "\ufeffconv,\"text, quoted\",ciphertext\r\n3,\"a \"\"b\"\"\nc\"," + of7[3] + "\r\n\r\n4,,\"" + of7[4] + "\"\n0,x," + of8[0] + "\n5,x,\n5,short\n\"5\",é," + of7[5] + "\n\n"
	write(t, filepath.Join(in, "sub", "table.csv"), table)
	args := []string{"key", "migrate", "--from", "7", "--to", "sm", "--in", in, "--out", out, "--field", "body.c", "--context", "app=im", "--context", "conv=.conv", "-o", "json"}
	for range 2 { // the second time there is nothing left to do
		r := run(t, nil, env, args...)
		var m migration
		if err := json.Unmarshal([]byte(r.out), &m); err != nil || r.code != 1 {
			t.Fatalf("%+v", r)
		}
		want := migration{Files: 2, Lines: 18, Reencrypted: 6, Skipped: 2, Without: 4, FailedLines: 6, Failed: map[string]int{"decrypt_failed": 3, "bad_request": 3}, Complete: true}
		// Of the lines: 12 of the first file, whose empty one does not count, and 6 records.
		if !m.Complete || m.Lines != want.Lines || m.Reencrypted != want.Reencrypted || m.Skipped != want.Skipped || m.Without != want.Without ||
			m.FailedLines != want.FailedLines || !maps.Equal(m.Failed, want.Failed) || m.Files != 2 {
			t.Errorf("%s", r.out)
		}
	}
	moved := map[int]string{}
	replaced := func(got, original string, numbers ...int) {
		t.Helper()
		for _, n := range numbers {
			before, after, ok := strings.Cut(original, of7[n])
			rest, found := strings.CutPrefix(got, before)
			if !ok || !found {
				t.Fatalf("%q is not as %q was", got, original)
			}
			end := strings.IndexAny(rest, "\",\r\n")
			moved[n], got, original = rest[:end], rest[end:], after
		}
		if got != original {
			t.Errorf("the rest is %q, was %q", got, original)
		}
	}
	gotLines, got := strings.Split(read(t, filepath.Join(out, "messages.jsonl")), "\n"), read(t, filepath.Join(out, "sub", "table.csv"))
	if len(gotLines) != len(lines) {
		t.Fatalf("%d lines became %d", len(lines), len(gotLines))
	}
	for i, line := range lines {
		switch i {
		case 0, 1:
			replaced(gotLines[i], line, i)
		case 12:
			replaced(gotLines[i], line, 2)
		default:
			replaced(gotLines[i], line)
		}
	}
	replaced(got, table, 3, 4, 5)
	s.opensAs(8, moved)
	var listed []int
	for line := range strings.Lines(read(t, filepath.Join(out, "messages.jsonl.failed"))) {
		var f struct{ Line int }
		if err := json.Unmarshal([]byte(line), &f); err != nil || strings.Contains(line, "plain words") {
			t.Errorf("%s: %v", line, err)
		}
		listed = append(listed, f.Line)
	}
	if fmt.Sprint(listed) != "[8 9 10 11 12]" {
		t.Errorf("failed lines: %v", listed)
	}
	if f := read(t, filepath.Join(out, "sub", "table.csv.failed")); !strings.Contains(f, `"line":8,"code":"bad_request"`) || strings.Count(f, "\n") != 1 {
		t.Errorf("failed records: %s", f)
	}

	refused := func(code int, what string, args ...string) {
		t.Helper()
		if r := run(t, nil, env, args...); r.code != code || !strings.Contains(r.err, what) {
			t.Errorf("%q: %+v, want %d %q", args, r, code, what)
		}
	}
	base := []string{"key", "migrate", "--from", "7", "--in", in}
	refused(1, "another migration", append(base, "--to", "7", "--out", out)...)
	refused(2, "within --in", append(base, "--to", "8", "--out", filepath.Join(in, "out"))...)
	refused(4, "grant", append(base, "--to", "200", "--field", "body.c", "--context", "app=im", "--context", "conv=.conv", "--out", filepath.Join(dir, "o2"))...)
	refused(2, "no column", append(base, "--to", "8", "--column", "x", "--out", filepath.Join(dir, "o3"))...)
	write(t, filepath.Join(in, "a.jsonl"), "\x02\x01a stream")
	refused(2, "a stream", append(base, "--to", "8", "--out", filepath.Join(dir, "o4"))...)
	if _, err := os.Stat(filepath.Join(dir, "o4")); err == nil {
		t.Error("a job that cannot be done has begun")
	}
	write(t, filepath.Join(in, "messages.jsonl"), text+"\n")
	if err := os.Remove(filepath.Join(in, "a.jsonl")); err != nil {
		t.Fatal(err)
	}
	refused(1, "has changed", args...)
	write(t, filepath.Join(dir, "there"), "mine")
	refused(1, "there already", "key", "migrate", "--from", "7", "--to", "8", "--in", filepath.Join(in, "messages.jsonl"), "--out", filepath.Join(dir, "there"))
	if read(t, filepath.Join(dir, "there")) != "mine" {
		t.Error("a file that was there is changed")
	}
}

// TestMigrateKilled kills a migration again and again, at no certain moment, until it
// is complete: no line is lost, none is there twice, none is out of its place.
func TestMigrateKilled(t *testing.T) {
	t.Parallel()
	s := openSite(t)
	env, dir := s.appEnv(), t.TempDir()
	const lines = 12000
	of7, of8 := s.seal("7", lines), s.seal("8", 1)
	var text strings.Builder
	for i, c := range of7 {
		switch i % 10 {
		case 3:
			c = of8[0]
		case 7:
			c = c[:len(c)-4] + "AAAA"
		}
		fmt.Fprintf(&text, `{"conv":%d,"ciphertext":%q}`+"\n", i, c)
	}
	in, out := filepath.Join(dir, "in.jsonl"), filepath.Join(dir, "out.jsonl")
	write(t, in, text.String())
	size := func() int64 {
		info, err := os.Stat(out)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	args := []string{"key", "migrate", "--from", "7", "--to", "8", "--in", in, "--out", out, "--context", "app=im", "--context", "conv=.conv", "--report", filepath.Join(dir, "report.json")}
	kills := 0
	for round := 0; ; round++ {
		cmd := exec.CommandContext(t.Context(), trikey, args...)
		cmd.Env = append(os.Environ(), env...)
		var said bytes.Buffer
		cmd.Stderr = &said
		before := size()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		over := false
		for !over {
			select {
			case <-ended:
				over = true
			case <-time.After(time.Millisecond):
				// It has written something; the checkpoint may be there or not.
				if now := size(); now != before && round < 100 {
					time.Sleep(rand.N(20 * time.Millisecond))
					_ = cmd.Process.Kill()
					<-ended
					over = true
				}
			}
		}
		if code := cmd.ProcessState.ExitCode(); code == 1 {
			break // complete, with failed lines
		} else if code != -1 {
			t.Fatalf("%d: %s", code, &said)
		}
		kills++
	}
	t.Logf("killed %d times", kills)
	if kills < 3 {
		t.Errorf("killed %d times only", kills)
	}
	var m migration
	if err := json.Unmarshal([]byte(read(t, filepath.Join(dir, "report.json"))), &m); err != nil || !m.Complete ||
		m.Lines != lines || m.Reencrypted != lines*8/10 || m.Skipped != lines/10 || m.Failed["decrypt_failed"] != lines/10 {
		t.Errorf("%+v, %v", m, err)
	}
	moved := map[int]string{}
	n := 0
	original := strings.Split(text.String(), "\n")
	for line := range strings.Lines(read(t, out)) {
		var got struct {
			Conv       int
			Ciphertext string
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil || got.Conv != n {
			t.Fatalf("line %d is %q, %v", n, line, err)
		}
		if n%10 == 3 || n%10 == 7 {
			if line != original[n]+"\n" {
				t.Errorf("line %d was changed", n)
			}
		} else {
			moved[n] = got.Ciphertext
		}
		n++
	}
	if n != lines {
		t.Errorf("%d lines became %d", lines, n)
	}
	s.opensAs(8, moved)
	if f := strings.Count(read(t, out+".failed"), "\n"); f != lines/10 {
		t.Errorf("%d failed lines are listed, want %d", f, lines/10)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 5 { // in, out, its checkpoint and failed lines, report
		t.Errorf("%v, %v", left, err)
	}
	// The census agrees.
	r := run(t, nil, nil, "key", "census", "--in", out, "--save", filepath.Join(dir, "census.json"), "-o", "json")
	var c struct {
		Keys []struct{ Key, Version, Ciphertexts int }
	}
	r.json(t, &c)
	if fmt.Sprint(c.Keys) != fmt.Sprintf("[{7 1 %d} {8 1 %d}]", lines/10, lines*9/10) || read(t, filepath.Join(dir, "census.json")) != r.out {
		t.Errorf("%s", r.out)
	}
	// A service that is sealed: the job stops, and says how to go on.
	s.ok("machine", "seal")
	sealedArgs := append([]string{}, args...)
	sealedArgs[9] = filepath.Join(dir, "later.jsonl")
	if r := run(t, nil, env, sealedArgs...); r.code != 3 || !strings.Contains(r.err, "goes on from there") {
		t.Errorf("%+v", r)
	}
	if r := s.unseal("1", "2", "3"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if r := run(t, nil, env, sealedArgs...); r.code != 1 || strings.Count(read(t, sealedArgs[9]), "\n") != lines {
		t.Errorf("%+v", r)
	}
}
