package secret

import "golang.org/x/sys/cpu"

// What clearVectors asks of the processor: whether its registers have upper halves, and
// whether there are thirty-two of them.
//
//nolint:unused // registers_amd64.s reads them
var (
	hasAVX    = cpu.X86.HasAVX
	hasAVX512 = cpu.X86.HasAVX512F
)
