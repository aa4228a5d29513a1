package engine

import (
	"crypto/rand"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Random appends size random bytes of the kernel to dst.
func Random(dst []byte, size int) ([]byte, error) {
	if size < 1 || size > hsm.MaxRandom {
		return dst, fault.New(fault.BadRequest, "bytes: %d are asked for; 1 to %d are given at a time", size, hsm.MaxRandom)
	}
	start := len(dst)
	dst = append(dst, make([]byte, size)...)
	_, _ = rand.Read(dst[start:]) // never fails
	return dst, nil
}

// DataKey draws the data key of an operation and returns what seal makes of it. Only when
// the operation asks for it does the key stay anywhere in the clear.
func DataKey(op *hsm.Op, seal func(raw []byte) ([]byte, error)) ([]byte, error) {
	if op.Size < 1 || op.Size > hsm.MaxDataKey {
		return op.Output, fault.New(fault.BadRequest, "bytes: %d are asked for; a data key has 16, 32 or 64", op.Size)
	}
	key, err := secret.Random(op.Size)
	if err != nil {
		return op.Output, err
	}
	defer key.Wipe()
	out := op.Output
	err = key.Use(func(raw []byte) (err error) {
		if out, err = seal(raw); err == nil && op.Reveal {
			op.Plain = append(op.Plain, raw...)
		}
		return err
	})
	return out, err
}
