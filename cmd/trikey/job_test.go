package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const allOps = "encrypt,decrypt,reencrypt-from,reencrypt-to"

// TestMainJob is the main job: sealed, unsealed, used, sealed by a restart, used again.
func TestMainJob(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	if got := s.state(); got != "sealed 0/3" {
		t.Errorf("at the start: %s", got)
	}
	s.key, s.secret = "any", "any"
	s.wantError(s.post("/v1/keys/7/encrypt", object{"plaintext": ""}), 503, "sealed")
	if live, ready := s.ready(); live != 200 || ready != 503 {
		t.Errorf("sealed: livez %d, readyz %d", live, ready)
	}
	if r := s.run("key", "create", "--index", "7", "--name", "chat"); r.code != 3 {
		t.Errorf("key create while sealed: %+v", r)
	}
	if r := s.unseal("1", "2", "3"); r.code != 0 || s.state() != "open 3/3" {
		t.Fatalf("unseal: %+v", r)
	}
	if live, ready := s.ready(); live != 200 || ready != 200 {
		t.Errorf("open: livez %d, readyz %d", live, ready)
	}
	var key struct {
		Index, Version                       int
		Name, Algorithm, State, KCV, Wrapped string
		Versions                             []object
	}
	s.ok("key", "create", "--index", "7", "--name", "chat", "--algorithm", "aes-256-gcm", "-o", "json").json(t, &key)
	if key.Index != 7 || key.Name != "chat" || key.Version != 1 || key.Algorithm != "aes-256-gcm" || key.State != "active" ||
		!strings.HasPrefix(key.KCV, "cmac-aes:") || !strings.HasPrefix(key.Wrapped, "tl1.") || len(key.Versions) != 1 {
		t.Errorf("key create: %+v", key)
	}
	s.ok("key", "create", "--index", "8", "--name", "sm", "--algorithm", "sm4-gcm")
	s.createApp("im", "127.0.0.1/32", "keys=1-99,200;ops="+allOps)

	context := object{"app": "im", "conversation": "c-1"}
	first := s.encrypt("7", []byte("hello"), context)
	opened := s.post("/v1/keys/chat/decrypt", object{"ciphertext": first, "context": context})
	if opened.text("plaintext") != base64.StdEncoding.EncodeToString([]byte("hello")) || opened.body["version"] != 1.0 || opened.body["key"] != 7.0 {
		t.Errorf("decrypt: %s", opened.raw)
	}
	s.ok("key", "rotate", "7", "-o", "json").json(t, &key)
	if key.Version != 2 || len(key.Versions) != 2 {
		t.Errorf("rotate: %+v", key)
	}
	moved := s.post("/v1/reencrypt", object{"ciphertext": first, "context": context, "to": object{"key": 8, "context": object{"conversation": "c-2"}}})
	if moved.status != 200 || moved.text("algorithm") != "sm4-gcm" || moved.body["key"] != 8.0 {
		t.Fatalf("reencrypt: %s", moved.raw)
	}
	newest := s.post("/v1/reencrypt", object{"ciphertext": first, "context": context})
	if newest.body["version"] != 2.0 || newest.text("algorithm") != "aes-256-gcm" {
		t.Errorf("reencrypt to the newest version: %s", newest.raw)
	}

	s.kill()
	s.start()
	s.wantError(s.post("/v1/keys/7/encrypt", object{"plaintext": ""}), 503, "sealed")
	if r := s.unseal("3", "1", "2"); r.code != 0 {
		t.Fatalf("unseal after a restart: %+v", r)
	}
	for _, c := range []struct {
		ciphertext string
		context    object
	}{{first, context}, {moved.text("ciphertext"), object{"conversation": "c-2"}}, {newest.text("ciphertext"), context}} {
		a := s.post("/v1/batch/decrypt", object{"items": []object{{"ciphertext": c.ciphertext, "context": c.context}}})
		if !bytes.Contains(a.raw, []byte(`"plaintext":"aGVsbG8="`)) {
			t.Errorf("after a restart: %s", a.raw)
		}
	}
	s.ok("machine", "seal")
	s.wantError(s.post("/v1/keys/7/encrypt", object{"plaintext": ""}), 503, "sealed")
}

func TestDemo(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "demo")
	home := t.TempDir()
	r := run(t, nil, []string{"HOME=" + home}, "demo", "--dir", dir)
	if r.code != 0 || strings.Count(r.out, "refused") < 4 || !strings.Contains(r.out, "2 keys, 2 versions open") {
		t.Errorf("%+v", r)
	}
	for _, path := range []string{dir, filepath.Join(home, ".config"), filepath.Join(home, ".trikey")} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("the demo left %s", path)
		}
	}
}

// TestKill kills the service in the middle of key creations, again and again. Every key
// that was acknowledged must be there and open what it sealed.
func TestKill(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)
	sealed := map[int]string{}
	index := 0
	for round := range 4 {
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for ctx.Err() == nil {
				index++
				if r := s.run("key", "create", "--index", fmt.Sprint(index), "--name", fmt.Sprintf("k%d", index)); r.code != 0 {
					return
				}
				if c, ok := s.tryEncrypt(index); ok {
					sealed[index] = c
				}
				if len(sealed) == 8*(round+1) {
					_ = s.serve.Process.Kill() // the loop goes on until it notices
				}
			}
		}()
		<-stopped
		cancel()
		s.kill()
		s.open()
	}
	var list []struct{ Index int }
	s.ok("key", "list", "-o", "json").json(t, &list)
	if len(list) < len(sealed) || len(sealed) < 30 {
		t.Errorf("%d keys are listed, %d sealed something", len(list), len(sealed))
	}
	for i, c := range sealed {
		a := s.post(fmt.Sprintf("/v1/keys/%d/decrypt", i), object{"ciphertext": c})
		if want := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "m%d", i)); a.text("plaintext") != want {
			t.Errorf("key %d: %s", i, a.raw)
		}
	}
}

// tryEncrypt encrypts with a service that may be dead.
func (s *site) tryEncrypt(index int) (string, bool) {
	body, err := json.Marshal(object{"plaintext": fmt.Appendf(nil, "m%d", index)})
	if err != nil {
		return "", false
	}
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, fmt.Sprintf("%s/v1/keys/%d/encrypt", s.api, index), bytes.NewReader(body))
	if err != nil {
		return "", false
	}
	req.SetBasicAuth(s.key, s.secret)
	res, err := s.client.Do(req)
	if err != nil {
		return "", false
	}
	defer func() { _ = res.Body.Close() }()
	var out struct{ Ciphertext string }
	err = json.NewDecoder(res.Body).Decode(&out)
	return out.Ciphertext, err == nil && res.StatusCode == 200
}

// TestCommandsOfAnApp uses the command line as an IM service would.
func TestCommandsOfAnApp(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.ok("key", "create", "--index", "8", "--name", "chat2", "--algorithm", "chacha20-poly1305")
	s.createApp("im", "127.0.0.1/32", "keys=1-99;ops="+allOps)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(s.secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"TRIKEY_APP_KEY=" + s.key, "TRIKEY_APP_SECRET_FILE=" + secret, "TRIKEY_ADDR=" + s.api, "TRIKEY_CACERT=" + s.path("ca.pem")}
	for _, input := range []string{"", "hello\n", strings.Repeat("x", 1<<20)} {
		sealed := run(t, strings.NewReader(input), env, "encrypt", "--key", "7", "--context", "c=1", "--context", "d=a=b")
		moved := run(t, strings.NewReader(sealed.out), env, "reencrypt", "--to-key", "8", "--context", "d=a=b", "--context", "c=1", "--to-context", "c=2")
		opened := run(t, strings.NewReader(moved.out), env, "decrypt", "--context", "c=2")
		if opened.out != input || opened.code != 0 {
			t.Errorf("%d bytes: %d bytes came back, %s%s%s", len(input), len(opened.out), sealed.err, moved.err, opened.err)
		}
		if r := run(t, strings.NewReader(moved.out), env, "decrypt", "--context", "c=1"); r.code != 6 {
			t.Errorf("another context: %+v", r)
		}
		if r := run(t, strings.NewReader(moved.out), nil, "inspect", "-o", "json"); !strings.Contains(r.out, `"chacha20-poly1305"`) {
			t.Errorf("inspect: %+v", r)
		}
	}
	for _, test := range []struct {
		args []string
		env  []string
		code int
	}{
		{[]string{"encrypt", "--key", "77"}, env, 5},
		{[]string{"encrypt", "--key", "100"}, env, 4},
		{[]string{"encrypt"}, env, 2},
		{[]string{"encrypt", "--key", "7", "--context", "novalue"}, env, 2},
		{[]string{"encrypt", "--key", "7"}, append(env, "TRIKEY_APP_KEY=wrong"), 4},
		{[]string{"encrypt", "--key", "7"}, append(env, "TRIKEY_APP_KEY="), 4},
		{[]string{"encrypt", "--key", "7"}, append(env, "TRIKEY_ADDR=https://127.0.0.1:1"), 3},
		{[]string{"encrypt", "--key", "7", "--algorithm", "rot13"}, env, 2},
		{[]string{"no-such-command"}, nil, 2},
		{[]string{"key", "no-such-command"}, nil, 2},
		{[]string{"key", "show"}, nil, 2},
		{[]string{"version", "-o", "xml"}, nil, 2},
	} {
		if r := run(t, strings.NewReader("x"), test.env, test.args...); r.code != test.code || r.err == "" {
			t.Errorf("%q: %+v, want exit code %d", test.args, r, test.code)
		}
	}
}

// TestOneProcess: a second service in the same directory is refused, and the first goes
// on.
func TestOneProcess(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	if r := s.run("serve"); r.code != 3 || !strings.Contains(r.err, "in use by another trikey process") {
		t.Errorf("%+v", r)
	}
	if got := s.state(); got != "sealed 0/3" {
		t.Errorf("the first service: %s", got)
	}
}

func TestBadSurroundings(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(s *site) error
		want  string
	}{
		"unknown key": {func(s *site) error { return appendTo(s.path("trikey.yaml"), "api:\n  lissten: x\n") }, "line"},
		"damaged store": {func(s *site) error {
			return os.WriteFile(s.path("data", "store.db"), bytes.Repeat([]byte{7}, 32<<10), 0o600)
		}, "damaged"},
		"open PIN file":    {func(s *site) error { return os.Chmod(s.path("pins", "chip"), 0o644) }, "chmod 600"},
		"wrong chip PIN":   {func(s *site) error { return os.WriteFile(s.path("pins", "chip"), []byte("0000"), 0o600) }, "CKR_PIN_INCORRECT"},
		"no certificate":   {func(s *site) error { return os.Remove(s.path("tls", "cert.pem")) }, "api.cert"},
		"no chip module":   {func(s *site) error { return os.Remove(s.path("chip", "lib", "softhsm.so")) }, "install it"},
		"damaged record":   {func(s *site) error { return os.WriteFile(s.path("data", "machine.json"), []byte("{"), 0o600) }, "restore it"},
		"another region":   {func(s *site) error { return replaceIn(s.path("trikey.yaml"), `region: ""`, "region: eu") }, "region"},
		"no configuration": {func(s *site) error { return os.Remove(s.path("trikey.yaml")) }, "configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			if err := test.spoil(s); err != nil {
				t.Fatal(err)
			}
			r := s.run("serve")
			if r.code == 0 || !strings.Contains(r.err, test.want) || strings.Contains(r.err, "goroutine") {
				t.Errorf("%+v, want %q", r, test.want)
			}
		})
	}
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	return f.Close()
}

func replaceIn(path, old, with string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, bytes.Replace(raw, []byte(old), []byte(with), 1), 0o600)
}

// TestRunByHand is what make run does.
func TestRunByHand(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "run")
	for range 2 { // the second time the directory is there
		ctx, cancel := context.WithCancel(t.Context())
		cmd := exec.CommandContext(ctx, trikey, "demo", "--dir", dir, "--serve")
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var curl []string
		lines := bufio.NewScanner(out)
		for lines.Scan() && !strings.Contains(lines.Text(), "Ctrl-C") {
			if strings.HasPrefix(lines.Text(), "  curl --cacert") || len(curl) == 1 {
				curl = append(curl, strings.TrimSuffix(lines.Text(), `\`))
			}
		}
		if len(curl) != 2 {
			t.Fatalf("no curl line was printed: %q", curl)
		}
		got, err := exec.CommandContext(ctx, "sh", "-c", strings.Join(curl, " ")).Output()
		if err != nil || !bytes.Contains(got, []byte(`"ciphertext":"tk1.`)) {
			t.Errorf("%v: %s", err, got)
		}
		cancel()
		_ = cmd.Wait() // whose error is that of ctx
		if code := cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("Ctrl-C ends it with code %d", code)
		}
	}
}
