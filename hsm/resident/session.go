package resident

import (
	"context"
	"crypto/subtle"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/engine"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// session is all that exists only while the machine is open.
type session struct {
	root       hsm.Manifest
	sealedRoot []byte        // the root key, as the chip encrypts it
	wrapping   hsm.Wrapper   // wraps business keys; in the token
	bind       *secret.Bytes // authenticates wrapped keys' headers
	record     *secret.Bytes // seals records of the key store

	businesses *engine.Cache[hsm.WrappedKey, *business]
}

// newSession hands the root to the token and derives what the session needs.
func newSession(ctx context.Context, cfg Config, root hsm.Root) (s *session, err error) {
	if err := selfTest(ctx, cfg.Token); err != nil {
		return nil, fault.Wrap(fault.CodeOf(err), err, "the chip cannot do the work of machine.engine: token, which takes AES key wrap "+
			"(CKM_AES_KEY_WRAP), AES-GCM and AES-CMAC; use another chip, or machine.engine: host")
	}
	s = &session{root: root.Manifest}
	if s.sealedRoot, err = engine.SealRoot(ctx, cfg.Token, root); err != nil {
		return nil, err
	}
	if s.bind, err = root.BindKey(); err != nil {
		return nil, err
	}
	if s.record, err = root.RecordKey(); err != nil {
		s.bind.Wipe()
		return nil, err
	}
	if s.wrapping, err = load(ctx, cfg.Token, root); err != nil {
		s.bind.Wipe()
		s.record.Wipe()
		return nil, err
	}
	s.businesses = engine.NewCache[hsm.WrappedKey](cfg.Keys, (*business).evict)
	return s, nil
}

func load(ctx context.Context, token hsm.Token, root hsm.Root) (hsm.Wrapper, error) {
	key, err := root.WrapKWKey()
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	return token.LoadWrapper(ctx, key)
}

// Manifest is that of the root.
func (s *session) Manifest() *hsm.Manifest { return &s.root }

// SealedRoot is the root key, as the chip encrypts it.
func (s *session) SealedRoot() []byte { return s.sealedRoot }

// Close forgets everything. No call is under way: the engine's lock is held.
func (s *session) Close() error {
	s.businesses.Purge()
	s.bind.Wipe()
	s.record.Wipe()
	return s.wrapping.Close()
}

// tag returns the HMAC-SHA-256 of a header and the wrapped key behind it.
func (s *session) tag(header, wrapped []byte) (tag []byte, err error) {
	err = s.bind.Use(func(key []byte) error {
		return secret.Derive(func() error { tag = alg.MAC(key, header, wrapped); return nil })
	})
	return tag, err
}

// bound returns what the token wrapped with its header in front and the tag of both
// behind.
func (s *session) bound(wrapped []byte, b hsm.Binding) (hsm.WrappedKey, error) {
	header, err := hsm.WrapHeader{Suite: hsm.WrapKW, Generation: s.root.Generation, Binding: b}.Append(nil)
	if err != nil {
		return "", err
	}
	tag, err := s.tag(header, wrapped)
	return hsm.WrappedKey(string(header) + string(wrapped) + string(tag)), err
}

// verify checks a wrapped key's tag and returns what the token can unwrap.
func (s *session) verify(w hsm.WrappedKey) (hsm.WrapHeader, []byte, error) {
	header, authenticated, _, sealed, err := w.Split()
	if err != nil {
		return header, nil, err
	}
	switch {
	case header.Region != s.root.Region:
		return header, nil, fault.New(fault.WrongRegion, "the key is of region %q, the machine of %q", header.Region, s.root.Region)
	case header.Suite == hsm.WrapGCM:
		return header, nil, errOnHost
	case header.Suite != hsm.WrapKW:
		return header, nil, fault.New(fault.RecordDamaged, "wrapped key: wrap suite %d is not one that this engine opens", header.Suite)
	}
	wrapped, tag := []byte(sealed[:hsm.WrapKWSize]), []byte(sealed[hsm.WrapKWSize:])
	want, err := s.tag([]byte(authenticated), wrapped)
	if err == nil && subtle.ConstantTimeCompare(tag, want) != 1 {
		err = fault.New(fault.RecordDamaged, "wrapped key of index %d version %d: altered, or wrapped by another root", header.Index, header.Version)
	}
	return header, wrapped, err
}

var errOnHost = fault.New(fault.AlgorithmNotAllowed, "the key was made by a host engine, which has had it in its memory: "+
	"set machine.engine: host, or make a new key on this machine; to move data here, decrypt on a machine with that engine and encrypt on this one")

// business returns the unwrapped key, from the cache or into the token.
func (s *session) business(ctx context.Context, w hsm.WrappedKey) (*business, error) {
	if b, ok := s.businesses.Get(w); ok {
		return b, nil
	}
	header, wrapped, err := s.verify(w)
	if err != nil {
		return nil, err
	}
	key, err := s.wrapping.Unwrap(ctx, wrapped)
	if err != nil {
		return nil, err
	}
	b := &business{header: header, key: key}
	s.businesses.Put(w, b)
	return b, nil
}

// withRecordKey runs f with the cipher of the record key, which is erased after it.
func (s *session) withRecordKey(f func(c alg.Cipher) error) error {
	return s.record.Use(func(key []byte) error {
		c, err := alg.NewCipher(alg.AES256GCM, key)
		if err != nil {
			return err
		}
		defer c.Erase()
		return f(c)
	})
}

// business is a business key in the token.
type business struct {
	header hsm.WrapHeader

	mu  sync.RWMutex    // held for reading while the token uses the key; guards key
	key hsm.ResidentKey // nil once evicted
}

var errEvicted = errors.New("resident: evicted")

// use runs f while the key is in the token.
func (b *business) use(f func(b *business) error) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.key == nil {
		return errEvicted
	}
	return f(b)
}

// evict destroys the key in the token, when those who use it have done so.
func (b *business) evict() {
	b.mu.Lock()
	defer b.mu.Unlock()
	// A token that fails to forget a key has failed altogether: the next use says so.
	_ = b.key.Close()
	b.key = nil
}

// counts are the messages that this process has sealed, by key version. They outlive
// sessions: sealing and opening a machine does not start them anew.
type counts struct {
	of sync.Map // keyVersion to *atomic.Uint64
}

type keyVersion struct{ index, version uint32 }

// take counts one message, or refuses it.
func (c *counts) take(h hsm.WrapHeader, limit uint64) error {
	id := keyVersion{h.Index, h.Version}
	n, ok := c.of.Load(id)
	if !ok {
		n, _ = c.of.LoadOrStore(id, new(atomic.Uint64))
	}
	if n.(*atomic.Uint64).Add(1) > limit {
		return fault.New(fault.Conflict, "key %d version %d has sealed %d messages in this process, which is as many as AES-GCM's "+
			"random nonces stand; give the key a new version (trikey key rotate %d), and do so before that at a steady pace", h.Index, h.Version, limit, h.Index)
	}
	return nil
}
