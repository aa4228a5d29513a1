package secret_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/trikey/trikey/internal/secret"
)

func mustFill(t *testing.T, text string) *secret.Bytes {
	t.Helper()
	s, err := secret.Fill(len(text), func(b []byte) error { copy(b, text); return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Wipe)
	return s
}

func TestProtectionIsNamed(t *testing.T) {
	kind, err := secret.Protection()
	if err != nil || kind != secret.MemfdSecret && kind != secret.Mlock {
		t.Fatalf("Protection() = %q, %v", kind, err)
	}
	t.Log("secrets are in", kind)
}

func TestPrintsRedacted(t *testing.T) {
	const text = "correct horse battery staple"
	s := mustFill(t, text)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", s)
	j, err := json.Marshal(map[string]any{"key": s})
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{
		fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s %x %q %d", s, s, s, s, s, s, s), string(j), log.String(),
		fmt.Sprintf("%v", struct{ S *secret.Bytes }{s}), fmt.Errorf("e: %v", s).Error(),
	} {
		if strings.Contains(out, "horse") || strings.Contains(out, fmt.Sprintf("%x", "horse")) || !strings.Contains(out, secret.Redacted) {
			t.Errorf("printed %q", out)
		}
	}
}

func TestWipeClearsAndReuses(t *testing.T) {
	s, err := secret.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	var page []byte
	_ = s.Use(func(b []byte) error { page = unsafe.Slice(&b[0], 32); return nil })
	if bytes.Equal(page, make([]byte, 32)) {
		t.Fatal("random bytes are zero")
	}
	s.Wipe()
	s.Wipe()
	if !bytes.Equal(page, make([]byte, 32)) {
		t.Error("the bytes are there after Wipe")
	}
	if err := s.Use(func([]byte) error { return nil }); !errors.Is(err, secret.ErrWiped) {
		t.Errorf("Use after Wipe: %v", err)
	}
	if s.Len() != 0 || s.Equal(s) {
		t.Error("a wiped secret has bytes")
	}
}

func TestMoveWipesItsSource(t *testing.T) {
	b := []byte("0123456789abcdef0123456789abcdef")
	s, err := secret.Move(b)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Wipe()
	if !bytes.Equal(b, make([]byte, 32)) {
		t.Error("Move left its source")
	}
	if !s.Equal(mustFill(t, "0123456789abcdef0123456789abcdef")) {
		t.Error("Move changed the bytes")
	}
}

func TestReadBoundsItsInput(t *testing.T) {
	s, err := secret.Read(strings.NewReader("12345678"), 8)
	if err != nil || s.Len() != 8 {
		t.Fatalf("%d bytes, %v", s.Len(), err)
	}
	s.Wipe()
	if _, err := secret.Read(strings.NewReader("123456789"), 8); err == nil {
		t.Error("nine bytes passed a limit of eight")
	}
}

// Slots of many sizes, taken and wiped at once, never overlap.
func TestSlotsDoNotOverlap(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 500 {
				size := (i*37+g)%700 + 1
				s, err := secret.Fill(size, func(b []byte) error {
					for j := range b {
						if b[j] != 0 {
							return errors.New("a slot was not clean")
						}
						b[j] = byte(g + 1)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
				_ = s.Use(func(b []byte) error {
					if bytes.ContainsFunc(b, func(r rune) bool { return r != rune(g+1) }) {
						t.Error("two slots overlap")
					}
					return nil
				})
				s.Wipe()
			}
		})
	}
	wg.Wait()
}

// A hash keeps the end of its input, and an HMAC its pads, until they are erased.
func TestEraseReachesHashState(t *testing.T) {
	const key, message = "the key of the mac", "the last block of the message"
	var hashes []hash.Hash
	mac := hmac.New(func() hash.Hash {
		h := sha256.New()
		hashes = append(hashes, h)
		return h
	}, []byte(key))
	mac.Write([]byte(message))
	mac.Sum(nil)
	state := func() string {
		var all strings.Builder
		for _, h := range hashes {
			fmt.Fprintf(&all, "%+v", h)
		}
		return all.String()
	}
	before := state()
	for _, h := range hashes {
		secret.Erase(h)
	}
	secret.Erase(mac)
	if before == state() {
		t.Error("Erase changed nothing")
	}
	trace := strings.Trim(fmt.Sprint([]byte(message)), "[]")
	if !strings.Contains(before, trace) {
		t.Error("the control found no message in the hash: this test proves nothing any more")
	}
	if strings.Contains(state(), trace) {
		t.Error("the message is still in the hash")
	}
}

func BenchmarkScrub(b *testing.B) {
	for b.Loop() {
		_ = secret.Scrub(func() error { return nil })
	}
}
