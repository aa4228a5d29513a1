//go:build failpoint

package failpoint

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Hit carries out what TRIKEY_FAILPOINT says for this place: NAME=kill ends the process
// as kill -9 does; NAME=hide:PATH moves PATH to the directory above, as a card that is
// pulled out.
func Hit(name string) {
	for _, point := range strings.Split(os.Getenv("TRIKEY_FAILPOINT"), ",") {
		place, action, _ := strings.Cut(point, "=")
		if place != name {
			continue
		}
		if path, ok := strings.CutPrefix(action, "hide:"); ok {
			_ = os.Rename(path, filepath.Join(filepath.Dir(filepath.Dir(path)), filepath.Base(path)))
			continue
		}
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Minute) // the signal is on its way
	}
}

// HitNumber is Hit at NAME-N: a place that is come to more than once.
func HitNumber(name string, n int) { Hit(name + "-" + strconv.Itoa(n)) }

// Now is the time, later by what TRIKEY_FAILPOINT_CLOCK says: 240h.
func Now() time.Time {
	ahead, _ := time.ParseDuration(os.Getenv("TRIKEY_FAILPOINT_CLOCK"))
	return time.Now().Add(ahead)
}
