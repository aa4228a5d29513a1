//go:build !unprotected

package secret

// protected is false only in the control build of the memory test, which must find
// what this package hides.
const protected = true
