// Package harden keeps the memory of a process that holds keys away from core dumps,
// debuggers and swap, and tells honestly how far that went.
package harden

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/trikey/trikey/internal/fault"
)

// Protection is one of the things that guard the process's memory.
type Protection struct {
	Name  string `json:"name"`
	State string `json:"state"`
	On    bool   `json:"on"` // it guards
}

// Apply keeps the process's memory out of core dumps and away from other processes of
// its user, and takes as much locked memory for keys as it may. It refuses to run
// where a crash would be made to dump core.
func Apply() error {
	if os.Getenv("GOTRACEBACK") == "crash" {
		return fault.New(fault.BadConfig, "GOTRACEBACK=crash has a crash dump core, and keys with it; unset it")
	}
	debug.SetTraceback("single")
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	var locked unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &locked); err != nil {
		return err
	}
	locked.Cur = locked.Max
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &locked); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

// Report looks at the process as it is.
func Report() []Protection {
	return []Protection{core(), dumpable(), swap(), crash(), registers()}
}

func core() Protection {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return Protection{"core dumps", err.Error(), false}
	}
	if limit.Max == 0 {
		return Protection{"core dumps", "off (RLIMIT_CORE 0)", true}
	}
	return Protection{"core dumps", fmt.Sprintf("allowed, up to %d bytes", limit.Cur), false}
}

func dumpable() Protection {
	n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	switch {
	case err != nil:
		return Protection{"debuggers", err.Error(), false}
	case n == 0:
		return Protection{"debuggers", "root only (PR_SET_DUMPABLE 0)", true}
	}
	return Protection{"debuggers", "every process of this user may attach", false}
}

// swap looks for swap devices: pages with keys are locked, what passes through the
// service is not.
func swap() Protection {
	f, err := os.Open("/proc/swaps")
	if err != nil {
		return Protection{"swap", err.Error(), false}
	}
	defer func() { _ = f.Close() }()
	lines := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		lines++
	}
	if lines <= 1 {
		return Protection{"swap", "none on this host", true}
	}
	return Protection{"swap", "on: keys are locked in memory, messages that pass are not; encrypt it or turn it off", false}
}

func crash() Protection {
	if os.Getenv("GOTRACEBACK") == "crash" {
		return Protection{"crashes", "dump core (GOTRACEBACK=crash)", false}
	}
	return Protection{"crashes", "print one stack, without arguments' contents", true}
}

// registers tells whether this binary was built with runtime/secret.
func registers() Protection {
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, s := range build.Settings {
			if s.Key == "GOEXPERIMENT" && strings.Contains(s.Value, "runtimesecret") {
				return Protection{"runtime/secret", "built in: stacks, registers and garbage of key steps are erased by the runtime too", true}
			}
		}
	}
	return Protection{"runtime/secret", "not built in: key steps run without signals, on stacks that are overwritten", false}
}
