package secret

import (
	"fmt"
	"math/bits"
	"sync"

	"golang.org/x/sys/unix"
)

// Kinds of protection, as Protection reports them.
const (
	MemfdSecret = "memfd_secret" // pages that the kernel itself cannot read
	Mlock       = "mlock"        // pages locked in RAM, kept out of core dumps
)

const (
	chunkSize = 64 << 10 // bytes mapped at a time
	minSlot   = 32       // the commonest secret is a 256-bit key
)

// process is the arena of this process.
var process arena

// arena hands out slots of power-of-two sizes from protected chunks. Chunks are
// never unmapped: a page that held a key stays a page that holds keys.
type arena struct {
	mu     sync.Mutex                  // guards all fields
	free   [bits.UintSize + 1][][]byte // free slots, by log2 of their size
	kind   string                      // MemfdSecret or Mlock, once the first chunk is mapped
	mapped int                         // bytes
	used   int                         // bytes in slots handed out
}

// Protection returns the kind of memory that secrets are kept in: MemfdSecret,
// or Mlock where the kernel has no memfd_secret. It maps the first pages if that
// has not happened yet.
func Protection() (string, error) {
	process.mu.Lock()
	defer process.mu.Unlock()
	if process.kind == "" {
		if err := process.grow(minSlot); err != nil {
			return "", err
		}
	}
	return process.kind, nil
}

// Usage returns the bytes of protected memory mapped and handed out.
func Usage() (mapped, used int) {
	process.mu.Lock()
	defer process.mu.Unlock()
	return process.mapped, process.used
}

// class returns log2 of the slot size for n bytes.
func class(n int) int { return bits.Len(uint(max(n, minSlot) - 1)) }

func (a *arena) take(n int) ([]byte, error) {
	if n < 0 {
		return nil, fmt.Errorf("secret: negative size %d", n)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := class(n)
	if len(a.free[c]) == 0 {
		if err := a.grow(1 << c); err != nil {
			return nil, err
		}
	}
	last := len(a.free[c]) - 1
	slot := a.free[c][last]
	a.free[c] = a.free[c][:last]
	a.used += len(slot)
	return slot, nil
}

// give takes back a slot, which the caller has cleared.
func (a *arena) give(slot []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := class(len(slot))
	a.free[c] = append(a.free[c], slot)
	a.used -= len(slot)
}

// grow maps one more chunk and cuts it into slots of the given size. The caller
// holds mu.
func (a *arena) grow(slot int) error {
	size := max(chunkSize, slot)
	chunk, kind, err := mapProtected(size)
	if err != nil {
		return fmt.Errorf("secret: no protected memory for keys (%d bytes held; raise the limit of locked memory, "+
			"LimitMEMLOCK in systemd or ulimit -l): %w", a.mapped, err)
	}
	a.kind = kind
	a.mapped += size
	c := class(slot)
	for ; len(chunk) >= slot; chunk = chunk[slot:] {
		a.free[c] = append(a.free[c], chunk[:slot:slot])
	}
	return nil
}

// mapProtected maps size bytes that are locked in RAM and not dumped.
func mapProtected(size int) ([]byte, string, error) {
	if !protected {
		return make([]byte, size), "ordinary memory", nil
	}
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return mapLocked(size)
	}
	// The mapping keeps the memory alive; nobody needs the descriptor.
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, "", fmt.Errorf("memfd_secret: %w", err)
	}
	chunk, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, "", fmt.Errorf("memfd_secret: %w", err)
	}
	return chunk, MemfdSecret, nil
}

func mapLocked(size int) ([]byte, string, error) {
	chunk, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, "", fmt.Errorf("mmap: %w", err)
	}
	for _, protect := range []func([]byte) error{
		unix.Mlock,
		func(b []byte) error { return unix.Madvise(b, unix.MADV_DONTDUMP) },
		func(b []byte) error { return unix.Madvise(b, unix.MADV_DONTFORK) },
	} {
		if err := protect(chunk); err != nil {
			_ = unix.Munmap(chunk)
			return nil, "", fmt.Errorf("mlock: %w", err)
		}
	}
	return chunk, Mlock, nil
}
