// Package identity is the key by which a service signs when its crypto machine runs apart:
// checkpoints of its audit log and certificates of destruction.
//
// It is an Ed25519 key (RFC 8032) that a machine has drawn and wrapped like any business
// key, under the index 0, which no business key has. The service keeps it wrapped, so that
// any open machine of the root can sign, and nobody without one. It is not the identity of
// a machine: what a machine itself states, of its ceremonies, no service can sign.
package identity

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
)

// file is the identity's, in the data directory. Nothing in it is secret without a machine
// of its root.
const file = "service-identity.json"

// kept is what the file has.
type kept struct {
	PublicKey   []byte         `json:"public_key"`
	Fingerprint string         `json:"fingerprint"`
	Wrapped     hsm.WrappedKey `json:"wrapped"`
}

// Fingerprint is that of the identity in a data directory, "" where there is none.
func Fingerprint(dir string) (string, error) {
	var k kept
	_, err := durable.Read(filepath.Join(dir, file), &k)
	return k.Fingerprint, err
}

// Identity signs for one service.
type Identity struct {
	machine hsm.Machine
	dir     string
	log     *slog.Logger

	mu   sync.Mutex // guards kept
	kept kept
}

// Open returns the identity that a data directory has. Where it has none it waits for a
// machine that is open, which draws one.
func Open(ctx context.Context, machine hsm.Machine, dir string, log *slog.Logger) (*Identity, error) {
	i := &Identity{machine: machine, dir: dir, log: log}
	found, err := durable.Read(filepath.Join(dir, file), &i.kept)
	if err != nil || found {
		return i, err
	}
	for told := false; ; {
		err := i.draw(ctx)
		switch {
		case err == nil:
			return i, nil
		case !errors.Is(err, fault.Sealed) && !errors.Is(err, fault.Unavailable):
			return nil, err
		case !told:
			log.Warn("this service has no identity yet: a crypto machine that is open has to draw it; waiting for one", "error", err)
			told = true
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// draw has a machine make a key.
func (i *Identity) draw(ctx context.Context) error {
	made, err := i.machine.GenerateKey(ctx, hsm.Binding{Version: 1, Algorithm: alg.Ed25519, Purpose: hsm.PurposeSign})
	if err != nil {
		return err
	}
	ops := []hsm.Op{{Kind: hsm.PublicKey, Key: made.Wrapped}}
	if err := errors.Join(i.machine.Do(ctx, ops), ops[0].Err); err != nil {
		return err
	}
	k := kept{PublicKey: ops[0].Output, Fingerprint: hsm.Fingerprint(ops[0].Output), Wrapped: made.Wrapped}
	if err := durable.Write(i.dir, file, k); err != nil {
		return err
	}
	i.log.Info("the service has an identity", "fingerprint", k.Fingerprint)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.kept = k
	return nil
}

func (i *Identity) current() kept {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.kept
}

// PublicKey returns the key that Sign signs with.
func (i *Identity) PublicKey(context.Context) (ed25519.PublicKey, error) {
	return i.current().PublicKey, nil
}

// Sign signs a message (hsm.Signature). After a rotation of the root, which leaves the key
// behind, it is by another key.
func (i *Identity) Sign(ctx context.Context, context string, message []byte) (hsm.Signature, error) {
	for drawn := false; ; drawn = true {
		k := i.current()
		ops := []hsm.Op{{Kind: hsm.Sign, Key: k.Wrapped, Input: hsm.SignedBytes(context, message)}}
		err := errors.Join(i.machine.Do(ctx, ops), ops[0].Err)
		if errors.Is(err, fault.RootGeneration) && !drawn {
			if err = i.draw(ctx); err == nil {
				continue
			}
		}
		return hsm.Signature{PublicKey: k.PublicKey, Fingerprint: k.Fingerprint, Signature: ops[0].Output}, err
	}
}
