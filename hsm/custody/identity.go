package custody

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"path/filepath"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

const identityFile = "identity.json"

// identity is the key that signs what the machine states: its seed as the chip encrypts
// it.
type identity struct {
	PublicKey []byte `json:"public_key"`
	Sealed    []byte `json:"sealed"`
}

// identity returns the machine's identity key, which is drawn when it is first needed.
func (d *Desk) identity(ctx context.Context) (*identity, error) {
	d.drawing.Lock()
	defer d.drawing.Unlock()
	var id identity
	found, err := durable.Read(filepath.Join(d.cfg.Dir, identityFile), &id)
	if err != nil || found {
		return &id, err
	}
	seed, err := secret.Random(ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	defer seed.Wipe()
	err = withKey(seed, func(private ed25519.PrivateKey) {
		id.PublicKey = bytes.Clone(private[ed25519.SeedSize:])
	})
	if err != nil {
		return nil, err
	}
	if id.Sealed, err = d.cfg.Chip.Seal(ctx, seed); err != nil {
		return nil, err
	}
	return &id, durable.Write(d.cfg.Dir, identityFile, id)
}

// fingerprint is that of the identity key, "" while there is none.
func (d *Desk) fingerprint() string {
	var id identity
	if found, err := durable.Read(filepath.Join(d.cfg.Dir, identityFile), &id); err != nil || !found {
		return ""
	}
	return hsm.Fingerprint(id.PublicKey)
}

// PublicKey returns the machine's public identity key, which Sign signs with.
func (d *Desk) PublicKey(ctx context.Context) (ed25519.PublicKey, error) {
	id, err := d.identity(ctx)
	if err != nil {
		return nil, err
	}
	return id.PublicKey, nil
}

// Sign signs a message with the machine's identity key (hsm.Signature). It waits for no
// ceremony: who signs may be what a ceremony waits for.
func (d *Desk) Sign(ctx context.Context, context string, message []byte) (hsm.Signature, error) {
	id, err := d.identity(ctx)
	if err != nil {
		return hsm.Signature{}, err
	}
	return d.signWith(ctx, id, context, message)
}

func (d *Desk) signWith(ctx context.Context, id *identity, context string, message []byte) (hsm.Signature, error) {
	s := hsm.Signature{PublicKey: id.PublicKey, Fingerprint: hsm.Fingerprint(id.PublicKey)}
	seed, err := d.cfg.Chip.Open(ctx, id.Sealed)
	if err != nil {
		return s, fault.Wrap(fault.ChipFault, err, "the machine's identity key (%s)", identityFile)
	}
	defer seed.Wipe()
	err = withKey(seed, func(private ed25519.PrivateKey) {
		s.Signature = ed25519.Sign(private, hsm.SignedBytes(context, message))
	})
	return s, err
}

// withKey makes the private key of a seed for as long as f runs.
func withKey(seed *secret.Bytes, f func(ed25519.PrivateKey)) error {
	return seed.Use(func(b []byte) error {
		return secret.Derive(func() error {
			private := ed25519.NewKeyFromSeed(b)
			defer clear(private)
			f(private)
			return nil
		})
	})
}
