// Package netlab gives a test hosts with addresses of their own, on this computer: Linux
// network namespaces (network_namespaces(7)) on one bridge. Processes are started on a
// host, and the host is cut off, or its line is made slow, without touching them.
//
// Everything is inside namespaces that end with the test: Enter runs the test anew in
// them, and nothing of the computer's own network is changed. It needs root, or user
// namespaces that an ordinary user may make, and the commands ip and tc (iproute2).
package netlab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// inside is set in the process that Enter started.
const inside = "TRIKEY_NETLAB"

// Enter runs the test that calls it once more, as a process of its own in new namespaces,
// and waits for that. In that process it reports true: go on; in the first one false:
// the test is over. Where no namespaces can be made the test fails, and says why.
func Enter(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		return true
	}
	args := []string{"--net", "--mount"}
	if os.Geteuid() != 0 {
		args = append(args, "--map-root-user")
	}
	if out, err := exec.Command("unshare", append(args, "true")...).CombinedOutput(); err != nil {
		t.Fatalf("this test needs network namespaces, and none can be made here: %v: %s", err, bytes.TrimSpace(out))
	}
	args = append(args, os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v="+strconv.FormatBool(testing.Verbose()), "-test.timeout", remaining(t))
	cmd := exec.CommandContext(t.Context(), "unshare", args...) //nolint:gosec // the test itself
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("in its namespaces: %v", err)
	}
	return false
}

// Lab is hosts on one bridge. The process of the test is on a host of its own, Here.
type Lab struct {
	t     testing.TB
	hosts int
	Here  string // address
}

// subnet is that of every lab: no two see each other.
const subnet = "10.77.0."

// New makes a lab in the namespaces that Enter has made.
func New(t testing.TB) *Lab {
	t.Helper()
	l := &Lab{t: t, Here: subnet + "254"}
	l.must("mount", "-t", "tmpfs", "tmpfs", "/run") // ip keeps its names there
	l.must("ip", "link", "set", "lo", "up")
	l.must("ip", "link", "add", "lab", "type", "bridge")
	l.must("ip", "addr", "add", l.Here+"/24", "dev", "lab")
	l.must("ip", "link", "set", "lab", "up")
	return l
}

// Host is one host.
type Host struct {
	Name string
	Addr string
	lab  *Lab
	port string // the bridge's end of its line
}

// Host adds a host.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	l.hosts++
	h := &Host{Name: name, Addr: subnet + strconv.Itoa(l.hosts), lab: l, port: fmt.Sprint("port", l.hosts)}
	l.must("ip", "netns", "add", name)
	l.must("ip", "link", "add", h.port, "type", "veth", "peer", "name", "eth0", "netns", name)
	l.must("ip", "link", "set", h.port, "master", "lab", "up")
	l.must("ip", "-n", name, "addr", "add", h.Addr+"/24", "dev", "eth0")
	l.must("ip", "-n", name, "link", "set", "eth0", "up")
	l.must("ip", "-n", name, "link", "set", "lo", "up")
	return h
}

// Command is a command to be run on the host. Its process is the command's own, so that
// signals reach it.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.Name, name}, args...)...)
}

// Cut cuts the host off: what is sent to it, and by it, is lost.
func (h *Host) Cut() { h.lab.t.Helper(); h.lab.must("ip", "link", "set", h.port, "down") }

// Mend ends what Cut began.
func (h *Host) Mend() { h.lab.t.Helper(); h.lab.must("ip", "link", "set", h.port, "up") }

// Slow limits the host's line, in both directions, to a rate that tc understands
// (1mbit).
func (h *Host) Slow(rate string) {
	h.lab.t.Helper()
	limit := []string{"root", "tbf", "rate", rate, "burst", "16kb", "latency", "2s"}
	h.lab.must("tc", append([]string{"qdisc", "add", "dev", h.port}, limit...)...)
	h.lab.must("tc", append([]string{"-n", h.Name, "qdisc", "add", "dev", "eth0"}, limit...)...)
}

// Fast ends what Slow began.
func (h *Host) Fast() {
	h.lab.t.Helper()
	h.lab.must("tc", "qdisc", "del", "dev", h.port, "root")
	h.lab.must("tc", "-n", h.Name, "qdisc", "del", "dev", "eth0", "root")
}

func (l *Lab) must(name string, args ...string) {
	l.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
}

// remaining is the time that the test has, as -test.timeout wants it; a little less, so
// that the inner process is the one to say where it stood.
func remaining(t *testing.T) string {
	deadline, ok := t.Deadline()
	if !ok {
		return "0"
	}
	return max(time.Until(deadline)-5*time.Second, time.Second).String()
}
