package kms

import (
	"context"
	"errors"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/hsm/keyexport"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/life"
)

// Exported is a version of a business key, wrapped for somebody else.
type Exported struct {
	Key      *Key
	Version  *Version
	Receiver string // fingerprint of the public key
	Wrapped  []byte // what hsm/keyexport makes
}

// MayExport returns what an export would give out, or why there is none. Version 0 is the
// newest that is not destroyed.
func (s *Service) MayExport(ref string, version uint32, receiver []byte) (*Key, *Version, *keyexport.Receiver, error) {
	k, err := s.FindKey(ref)
	if err != nil {
		return nil, nil, nil, err
	}
	v, err := k.exportable(version)
	if err != nil {
		return nil, nil, nil, err
	}
	to, err := keyexport.ParseReceiver(receiver)
	return k, v, to, err
}

// exportable returns the version that may be exported.
func (k *Key) exportable(number uint32) (*Version, error) {
	if number == 0 {
		number = k.Current().Version
	}
	v := k.Version(number)
	switch {
	case k.gone(number):
		return nil, gone(k.Index, number)
	case v == nil:
		return nil, fault.New(fault.NotFound, "key %d has no version %d; trikey key show %d lists them", k.Index, number, k.Index)
	case k.isLocked():
		return nil, errSealed
	case !k.Exportable():
		return nil, hsm.NotExportable(k.Index)
	case k.Algorithm == alg.ECDSAP256 || k.Algorithm == alg.SM2:
		return nil, fault.New(fault.AlgorithmNotAllowed, "export: the private key of %s is derived from the 32 bytes in a way of Trikey's own, so that nobody else could use them; "+
			"keep signing here", k.Algorithm)
	case k.Suspended != nil:
		return nil, fault.New(fault.KeyDisabled, "key %d is suspended; resume it first (trikey key resume %d)", k.Index, k.Index)
	case k.DestroyAt != nil, !v.marks().DestroyAt.IsZero():
		return nil, fault.New(fault.KeyDisabled, "version %d of key %d is to be destroyed; cancel that first (trikey key cancel-destroy %d)", number, k.Index, k.Index)
	case v.State == life.Compromised:
		return nil, fault.New(fault.KeyDisabled, "version %d of key %d is compromised and is not spread further; re-encrypt its data to another version", number, k.Index)
	}
	return v, nil
}

// ExportKey has the machine wrap a version of an exportable key for an RSA public key. That
// it goes out is in the key's record before it does: its destruction certificate says so.
func (s *Service) ExportKey(ctx context.Context, who Actor, ref string, version uint32, receiver []byte) (Exported, error) {
	k, v, to, err := s.MayExport(ref, version, receiver)
	if err != nil {
		return Exported{}, err
	}
	number := v.Version
	k, err = s.change(ctx, who, k.Index, "key to be exported", func(_ *loaded, k *Key) error {
		v, err := k.exportable(number)
		if err != nil {
			return err
		}
		v.mark().Exported = s.now()
		return nil
	})
	if err != nil {
		return Exported{}, err
	}
	out := Exported{Key: k, Version: k.Version(number), Receiver: to.Fingerprint()}
	op := hsm.Op{Kind: hsm.Export, Input: receiver}
	if op.Key, err = out.Version.key(); err != nil {
		return Exported{}, err
	}
	ops := []hsm.Op{op}
	if err := errors.Join(s.cfg.Machine.Do(ctx, ops), ops[0].Err); err != nil {
		return Exported{}, err
	}
	out.Wrapped = ops[0].Output
	s.cfg.Log.Info("key exported", "by", who, "index", k.Index, "version", number, "kcv", out.Version.KCV, "receiver", out.Receiver)
	return out, nil
}
