//go:build !failpoint

// Package failpoint has places in the code at which tests let a process die. They are
// there only in a binary built with the tag failpoint; in any other, Hit is nothing.
package failpoint

// Hit does nothing in this build.
func Hit(string) {}

// HitNumber does nothing in this build.
func HitNumber(string, int) {}
