//go:build goexperiment.runtimesecret

package secret

import rt "runtime/secret"

// erasing runs f so that the Go runtime erases the registers, the stack and, once the
// collector gets to it, the garbage of f. f must not call C: the runtime of Go 1.26
// does not survive that.
func erasing(f func()) { rt.Do(f) }
