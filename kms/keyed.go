package kms

import (
	"context"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/policy"
)

// keyedGrants are the grants of the operations that need a key of their own purpose.
// Codes are verified with the grant of signatures: who may only check may not make.
var keyedGrants = map[hsm.Kind]policy.Op{
	hsm.Mac: policy.Mac, hsm.VerifyMac: policy.Verify, hsm.Sign: policy.Sign, hsm.Verify: policy.Verify,
}

// prepareKeyed makes the machine's operation of a code or signature.
func (c *Call) prepareKeyed(l *loaded, caller *auth.Caller, op *hsm.Op) error {
	k, err := l.granted(caller, keyedGrants[c.Kind], c.Key)
	if err != nil {
		return err
	}
	version := c.Version
	op.Signature = c.Signature
	switch {
	case c.JWS != nil:
		if version, err = c.JWS.prepare(c, k, op); err != nil {
			return err
		}
	case c.Index:
		op.Input = c.Context.AppendIndexInput(nil, c.Input)
	}
	v, err := k.keyed(c.Kind, version, caller)
	if err != nil {
		return err
	}
	if c.Kind == hsm.Mac && k.Settings != nil { // a signature has no context
		if err := k.Settings.Context.Check(c.Context); err != nil {
			return err
		}
	}
	c.KeyIndex, c.KeyVersion, c.KeyAlgorithm = k.Index, v.Version, k.Algorithm
	if op.Key, err = v.key(); err != nil {
		return err
	}
	if c.Kind == hsm.Mac || c.Kind == hsm.Sign {
		c.sealedBy, c.sealedVer = k, v.Version
	} else {
		c.openedBy, c.openedVer = k, v.Version
	}
	return nil
}

// keyed returns the version that makes a code or signature, which is the newest if it
// is active, or checks one, which any version does that still opens what it sealed. A
// code is made with an older version only where a blind index is to be found again.
func (k *Key) keyed(kind hsm.Kind, number uint32, caller *auth.Caller) (*Version, error) {
	newest := k.Newest()
	if number == 0 {
		number = newest.Version
	}
	v := k.Version(number)
	switch {
	case v == nil && !k.gone(number):
		return nil, fault.New(fault.KeyNotFound, "key %d has no version %d", k.Index, number)
	case (kind == hsm.Sign || kind == hsm.Mac) && v == newest:
		if !k.seals() {
			return nil, k.cannotSeal()
		}
		return v, nil
	case v == nil || !k.opens(v):
		if err := k.cannotOpen(number, caller); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// PublicKey is the public key of a version of a key that signs.
type PublicKey struct {
	Index, Version uint32
	Algorithm      alg.ID
	Public         []byte
}

// Published returns the public keys that anybody may read, in order of index and version:
// those of versions that sign, will sign, or have signed what is still to be verified. A
// compromised or destroyed version vouches for nothing.
func (s *Service) Published() ([]PublicKey, error) {
	l, err := s.serving()
	if err != nil {
		return nil, err
	}
	var all []PublicKey
	for _, k := range l.keys.toPublish() {
		if k.DestroyAt != nil {
			continue
		}
		for _, v := range k.Versions {
			switch v.State {
			case life.PreActive, life.Active, life.Deactivated:
				all = append(all, PublicKey{k.Index, v.Version, k.Algorithm, v.Public})
			}
		}
	}
	return all, nil
}

// BeginImport has the machine make a one-time key for an import.
func (s *Service) BeginImport(ctx context.Context, who Actor) (hsm.ImportKey, error) {
	machine, err := s.importer()
	if err != nil {
		return hsm.ImportKey{}, err
	}
	made, err := machine.BeginImport(ctx)
	if err == nil {
		s.cfg.Log.Info("import begun", "by", who, "id", made.ID.String(), "expires", made.Expires)
	}
	return made, err
}

// FinishImport has the machine open what was wrapped for a one-time key, and stores the
// business key in it as a new key.
func (s *Service) FinishImport(ctx context.Context, who Actor, n NewKey, id hsm.ID, blob []byte) (*Key, error) {
	machine, err := s.importer()
	if err != nil {
		return nil, err
	}
	if n.Algorithm == alg.ECDSAP256 || n.Algorithm == alg.SM2 {
		return nil, fault.New(fault.AlgorithmNotAllowed, "import: the private key of %s is derived from the 32 bytes, so that an imported one would not be itself; "+
			"ed25519 seeds can be imported", n.Algorithm)
	}
	if n.Version != 0 {
		if l, err := s.serving(); err != nil {
			return nil, err
		} else if free := l.unused(n.Index, n.Version); free != n.Version {
			return nil, fault.New(fault.KeyDestroyed, "import: version %d of key %d was destroyed here; a version's number is given once, take another index", n.Version, n.Index)
		}
	}
	n.imported = true
	return s.addKey(ctx, who, n, "key imported", func(ctx context.Context, b hsm.Binding) (hsm.GeneratedKey, error) {
		return machine.FinishImport(ctx, id, blob, b)
	})
}

func (s *Service) importer() (hsm.Importer, error) {
	if _, err := s.serving(); err != nil {
		return nil, err
	}
	machine, ok := s.cfg.Machine.(hsm.Importer)
	if !ok {
		return nil, fault.New(fault.Unavailable, "import: this machine takes no keys in; import at the machine that holds the root")
	}
	return machine, nil
}
