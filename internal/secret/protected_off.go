//go:build unprotected

package secret

const protected = false
