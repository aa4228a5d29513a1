package secret

import "golang.org/x/sys/cpu"

// hasAVX tells clearVectors that the registers have upper halves.
var hasAVX = cpu.X86.HasAVX
