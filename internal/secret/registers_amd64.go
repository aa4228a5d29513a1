package secret

import "golang.org/x/sys/cpu"

// hasAVX tells clearVectors that the registers have upper halves.
//
//nolint:unused // registers_amd64.s reads it
var hasAVX = cpu.X86.HasAVX
