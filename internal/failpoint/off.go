//go:build !failpoint

// Package failpoint has places in the code at which tests let a process die. They are
// there only in a binary built with the tag failpoint; in any other, Hit is nothing.
package failpoint

import "time"

// Hit does nothing in this build.
func Hit(string) {}

// Now is time.Now in this build.
func Now() time.Time { return time.Now() }

// HitNumber does nothing in this build.
func HitNumber(string, int) {}
