package config_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/trikey/trikey/cmd/trikey/config"
)

const deploy = "../../../deploy"

func read(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(deploy, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestExamples reads every example with the loader that the service has.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(deploy, "config", "*.yaml"))
	if err != nil || len(files) < 4 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	for _, f := range files {
		c, err := config.Load(f, nil)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		apart := len(c.Machines) > 0
		if (c.Machine.Chip.Module == "") != apart || c.Region == "" || !strings.HasPrefix(c.Ops.Listen, "127.0.0.1:") {
			t.Errorf("%s: %+v", f, c)
		}
	}
}

// TestUnits has systemd read the units, where it is installed, and sees that nothing was
// softened.
func TestUnits(t *testing.T) {
	for _, name := range []string{"trikey", "trikey-machine"} {
		t.Run(name, func(t *testing.T) { testUnit(t, name) })
	}
}

func testUnit(t *testing.T, name string) {
	unit := read(t, "systemd/"+name+".service")
	for _, want := range []string{
		"User=" + name + "\n", "NoNewPrivileges=yes", "ProtectSystem=strict", "MemoryDenyWriteExecute=yes", "LimitCORE=0", "LimitMEMLOCK=", "PrivateTmp=yes",
		"RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX", "CapabilityBoundingSet=\n", "UMask=0077", "StateDirectoryMode=0700",
	} {
		if !strings.Contains(unit, want) {
			t.Errorf("the unit lacks %q", want)
		}
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("systemd-analyze is not here: the unit's syntax was not checked")
		return
	}
	self, err := os.Executable() // systemd wants a command that is there
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name+".service")
	if err := os.WriteFile(path, []byte(strings.Replace(unit, "/usr/bin/trikey", self, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", path).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte(path)) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestManifests: they are YAML, the configuration in them is one, and the pods have no more
// rights than they need.
func TestManifests(t *testing.T) {
	d := yaml.NewDecoder(strings.NewReader(read(t, "kubernetes/trikey.yaml")))
	kinds := map[string]bool{}
	for {
		var m struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string
			Metadata   struct{ Name string }
			Data       map[string]string
			Spec       yaml.Node
		}
		err := d.Decode(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.APIVersion == "" || m.Metadata.Name != "trikey" {
			t.Errorf("%+v", m)
		}
		kinds[m.Kind] = true
		switch m.Kind {
		case "ConfigMap":
			path := filepath.Join(t.TempDir(), "trikey.yaml")
			if err := os.WriteFile(path, []byte(m.Data["trikey.yaml"]), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := config.Load(path, nil); err != nil {
				t.Error(err)
			}
		case "StatefulSet":
			raw, err := yaml.Marshal(&m.Spec)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"runAsNonRoot: true", "readOnlyRootFilesystem: true", "allowPrivilegeEscalation: false", "drop: [ALL]", "RuntimeDefault", "path: /readyz"} {
				if !bytes.Contains(raw, []byte(want)) {
					t.Errorf("the pods lack %q", want)
				}
			}
		}
	}
	for _, want := range []string{"ConfigMap", "StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy"} {
		if !kinds[want] {
			t.Errorf("there is no %s", want)
		}
	}
}

// TestDockerfile: its images are of one version, and it does not run as root.
func TestDockerfile(t *testing.T) {
	file := read(t, "Dockerfile")
	from := regexp.MustCompile(`(?m)^FROM (\S+)`).FindAllStringSubmatch(file, -1)
	if len(from) != 2 {
		t.Fatalf("%d images", len(from))
	}
	for _, image := range from {
		if !regexp.MustCompile(`:\d+\.\d+`).MatchString(image[1]) {
			t.Errorf("%s is not pinned", image[1])
		}
	}
	if !regexp.MustCompile(`(?m)^USER [1-9]\d*:[1-9]\d*$`).MatchString(file) {
		t.Error("it runs as root")
	}
}
