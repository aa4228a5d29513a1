package secret

import (
	"fmt"
	"reflect"
	"runtime"

	"golang.org/x/sys/unix"
)

// stackDepth is how much of a stack Scrub prepares and burns: more than any
// derivation, cipher set-up or share check below it needs.
const stackDepth = 64 << 10

// Scrub runs f on a goroutine of its own, waits for it, and takes away what f left
// in the registers and on the stack. Hash functions and ciphers spill key bytes
// there, where they would otherwise lie until something else happens to be written.
//
// The stack is grown first, so that growing it under f leaves no copy behind, and
// overwritten at the end. No signal reaches the thread while f runs: the kernel
// saves the registers of a thread that it interrupts to the memory of the process,
// and the Go runtime, which preempts goroutines by a signal, saves them once more.
func Scrub(f func() error) error {
	if !protected {
		return f()
	}
	done := make(chan error)
	go func() { done <- scrubbed(f) }()
	return <-done
}

func scrubbed(f func() error) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &asynchronous, &before); err != nil {
		return fmt.Errorf("secret: block signals: %w", err)
	}
	defer func() {
		if unblock := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); err == nil {
			err = unblock
		}
	}()
	return steady(f)
}

// steady runs f above a stack that is in use by a quarter and more, and grown already:
// the garbage collector halves, by copying, one of which less is in use, and leaves what
// was there behind.
//
//go:noinline
func steady(f func() error) error {
	var page [stackDepth]byte
	burn()
	defer func() {
		clearVectors()
		burn()
		runtime.KeepAlive(&page)
	}()
	return f()
}

// asynchronous is every signal that may come at any time. Those that a thread
// brings upon itself stay: blocked, they would end the process without a word.
// 32 to 34 are the C library's own.
var asynchronous = func() (set unix.Sigset_t) {
	for signal := range 64 {
		switch unix.Signal(signal + 1) {
		case unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGABRT, unix.SIGSYS, 32, 33, 34:
		default:
			set.Val[signal/64] |= 1 << (signal % 64)
		}
	}
	return set
}()

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
	if !protected {
		return
	}
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
