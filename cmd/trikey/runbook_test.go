package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var runbookBlock = regexp.MustCompile("(?s)```sh runbook=([a-z-]+)\n(.*?)```")

// TestRunbooks runs every block of commands of the runbooks in docs/operations.md, in
// their order, on a machine that lives through all of them.
func TestRunbooks(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := runbookBlock.FindAllStringSubmatch(string(doc), -1)
	if len(blocks) < 10 {
		t.Fatalf("%d runbooks are in docs/operations.md", len(blocks))
	}
	s := newSite(t)
	s.blank()
	custodians := []string{"anna", "bao", "chen", "dora", "emil", "fei"}
	env := append(os.Environ(), "PATH="+filepath.Dir(trikey)+":"+os.Getenv("PATH"), "TRIKEY_CONFIG="+s.path("trikey.yaml"), "XDG_CONFIG_HOME="+s.path("home"))
	for _, name := range custodians {
		s.newCard(name)
		env = append(env, strings.ToUpper(name)+"=--pin-file "+s.path("pins", name))
	}
	s.freshChip()
	var sealed string
	before := map[string]func(){
		"first-day-init": func() { s.start() },
		"restart": func() {
			s.ok("key", "create", "--index", "7", "--name", "chat")
			s.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)
			sealed = s.encrypt("7", []byte("text"), nil)
			s.kill()
			s.start("TRIKEY_MACHINE_JOIN=approve")
		},
		"join": func() {
			fresh := newJoinMachine(t)
			fresh.forgetRecord()
			fresh.start()
			env = append(env, "NEW="+fresh.path("trikey.yaml"), "PRINT="+fresh.fingerprint(), "PEER="+s.fingerprint())
		},
		"restore": func() {
			s.kill()
			if err := os.Rename(s.path("data"), s.path("data.lost")); err != nil {
				t.Fatal(err)
			}
			s.freshChip()
		},
		"restored":      func() { s.start() },
		"lost-card":     func() { env = append(env, "LOST="+s.serial("bao")) },
		"forgotten-pin": func() { env = append(env, "LOST="+s.serial("fei")); s.newCard("bao"); s.eraseCard("bao") },
		"leaving":       func() { env = append(env, "LEAVING="+s.serial("bao")); s.newCard("fei") },
		"destroy":       func() { env = append(env, "KCV="+s.status().KCV) },
	}
	for _, b := range blocks {
		name, script := b[1], b[2]
		if prepare := before[name]; prepare != nil {
			prepare()
		}
		cmd := exec.CommandContext(t.Context(), "bash", "-euxc", script)
		cmd.Dir, cmd.Env = s.dir, env
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("runbook %s: %v\n%s", name, err, out)
		}
		if name == "leak" { // which has ended the secret that the test had
			var app struct {
				AppSecret string `json:"app_secret"`
			}
			s.ok("app", "rotate-secret", "im", "-o", "json").json(t, &app)
			s.secret = app.AppSecret
		}
		if sealed != "" && s.serve != nil && s.status().State == "open" {
			s.opens(sealed, "dGV4dA==")
		}
	}
	if state := s.status().State; state != "blank" {
		t.Errorf("at the end the machine is %s", state)
	}
}

// freshChip gives the site a chip without keys.
func (s *site) freshChip() {
	s.t.Helper()
	raw, err := os.ReadFile(s.path("trikey.yaml"))
	if err != nil {
		s.t.Fatal(err)
	}
	chip, _ := s.modules()
	serial := s.newToken(chip, "fresh-chip", "chip")
	changed := strings.Replace(string(raw), "label: trikey-chip", "label: fresh-chip", 1)
	changed = regexp.MustCompile(`serial: [0-9a-f"]+`).ReplaceAllString(changed, `serial: "`+serial+`"`)
	s.write(s.path("trikey.yaml"), []byte(changed))
}
