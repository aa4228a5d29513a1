//go:build amd64 || arm64

package secret

// clearVectors zeroes the processor's vector registers. Copying and hashing leave
// the last bytes they saw there, and the runtime saves these registers to the stack
// when it preempts a goroutine.
//
//go:noescape
func clearVectors()
