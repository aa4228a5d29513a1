// Package secret is memory for keys.
//
// Bytes are kept in pages apart from the Go heap: pages of memfd_secret(2),
// which the kernel itself cannot read back (not through /proc/PID/mem, ptrace or
// a core dump), or, where the kernel has none, pages locked into RAM and kept
// out of core dumps. Protection says which of the two this process got.
//
// A secret is used inside a closure, so that the places where its bytes can be
// copied are few and easy to find:
//
//	err := key.Use(func(b []byte) error { … })
//
// and wiped as soon as it is no longer needed. Whatever prints a secret, by fmt,
// slog, JSON or text encoding, prints Redacted.
//
// What the package cannot do: bytes that a closure copies elsewhere, or that a
// library leaves on the stack or heap, are out of its reach. Scrub and Erase
// narrow that gap; docs/threat-model.md says what remains.
package secret

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// Redacted is what a secret prints as.
const Redacted = "[secret]"

// ErrWiped is the error of using a secret after it was wiped.
var ErrWiped = errors.New("secret: wiped")

// Bytes is a fixed number of bytes in protected memory. The zero value is a
// wiped secret. Bytes may be used concurrently; the closure given to Use may
// change what it sees only while no other closure can run.
type Bytes struct {
	mu   sync.RWMutex // held for reading while a closure sees buf; guards buf
	buf  []byte       // length as asked for; nil when wiped
	slot []byte       // what the arena gave, at least as long
}

// New returns n zero bytes of protected memory. It fails when the limit of
// locked memory (RLIMIT_MEMLOCK) is reached.
func New(n int) (*Bytes, error) {
	slot, err := process.take(n)
	if err != nil {
		return nil, err
	}
	return &Bytes{buf: slot[:n:n], slot: slot}, nil
}

// Random returns n random bytes from the kernel.
func Random(n int) (*Bytes, error) {
	return Fill(n, func(b []byte) error { _, err := rand.Read(b); return err })
}

// Fill returns n bytes that f has written; when f fails, the memory is released.
func Fill(n int, f func(b []byte) error) (*Bytes, error) {
	s, err := New(n)
	if err != nil {
		return nil, err
	}
	defer clearVectors()
	if err := f(s.buf); err != nil {
		s.Wipe()
		return nil, err
	}
	return s, nil
}

// Move returns a secret with the bytes of b, and wipes b, also when it fails.
func Move(b []byte) (*Bytes, error) {
	if protected {
		defer clear(b)
	}
	return Fill(len(b), func(p []byte) error { copy(p, b); return nil })
}

// Read returns a secret of everything r has, at most limit bytes, without
// passing it through memory that is not protected.
func Read(r io.Reader, limit int) (*Bytes, error) {
	page, err := New(limit + 1)
	if err != nil {
		return nil, err
	}
	defer page.Wipe()
	defer clearVectors()
	n, err := io.ReadFull(r, page.buf)
	switch {
	case err == nil:
		return nil, fmt.Errorf("secret: longer than %d bytes", limit)
	case !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("secret: %w", err)
	}
	return Fill(n, func(b []byte) error { copy(b, page.buf[:n]); return nil })
}

// Use calls f with the bytes. They must not be kept after f returns. It returns
// ErrWiped without calling f when the secret is wiped.
func (s *Bytes) Use(f func(b []byte) error) error {
	if s == nil {
		return ErrWiped
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.buf == nil {
		return ErrWiped
	}
	defer clearVectors()
	return f(s.buf)
}

// Len returns the number of bytes, 0 when wiped.
func (s *Bytes) Len() int {
	if s == nil {
		return 0
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.buf)
}

// Equal reports in constant time whether both secrets hold the same bytes. A
// wiped secret equals nothing.
func (s *Bytes) Equal(o *Bytes) bool {
	equal := false
	err := s.Use(func(a []byte) error {
		return o.Use(func(b []byte) error {
			equal = subtle.ConstantTimeCompare(a, b) == 1
			return nil
		})
	})
	return err == nil && equal
}

// Wipe zeroes the bytes and gives the memory back. It waits for closures that
// are running. Wiping again, or wiping nil, does nothing.
func (s *Bytes) Wipe() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buf == nil {
		return
	}
	if protected {
		clear(s.slot)
	}
	process.give(s.slot)
	s.buf, s.slot = nil, nil
}

// String returns Redacted, for every verb and every encoding below.
func (s *Bytes) String() string { return Redacted }

// GoString returns Redacted.
func (s *Bytes) GoString() string { return Redacted }

// Format writes Redacted whatever the verb.
func (s *Bytes) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Redacted) }

// LogValue returns Redacted.
func (s *Bytes) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalText returns Redacted.
func (s *Bytes) MarshalText() ([]byte, error) { return []byte(Redacted), nil }
