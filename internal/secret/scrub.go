package secret

import (
	"reflect"
	"runtime"
)

// stackDepth is how much of a stack Scrub prepares and burns: more than any
// derivation, cipher set-up or share check below it needs.
const stackDepth = 64 << 10

// Scrub runs f on a goroutine of its own, waits for it, and overwrites the
// stack that f used. Hash functions and ciphers spill key bytes to the stack,
// where they would otherwise lie until something else happens to be written
// there. The stack is grown first, so that growing it under f leaves no copy
// behind. Vector registers are cleared, as they are after each use of a secret.
func Scrub(f func() error) error {
	done := make(chan error)
	go func() {
		burn()
		err := f()
		clearVectors()
		burn()
		done <- err
	}()
	return <-done
}

// burn overwrites stackDepth bytes of stack below its caller.
//
//go:noinline
func burn() {
	var page [stackDepth]byte
	clear(page[:])
	runtime.KeepAlive(&page)
}

// Erase zeroes the struct that v points to, and the arrays behind its slices of
// bytes: the only way to take a key out of a hash or cipher of a library that has
// no method for it. Anything else than a pointer to a struct is left alone.
func Erase(v any) {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() || p.Elem().Kind() != reflect.Struct {
		return
	}
	object := p.Elem()
	for i := range object.NumField() {
		if f := object.Field(i); f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Uint8 {
			clear(f.Bytes())
		}
	}
	object.SetZero()
}
