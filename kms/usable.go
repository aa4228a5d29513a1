package kms

import (
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/policy"
)

// cannotSeal says why a key's newest version, which is not active, does not seal.
func (k *Key) cannotSeal() error {
	switch v := k.Newest(); {
	case k.Current().State == life.Destroyed:
		return fault.New(fault.KeyDestroyed, "key %d is destroyed", k.Index)
	case k.Suspended != nil:
		return fault.New(fault.KeyDisabled, "key %d is suspended", k.Index)
	case k.DestroyAt != nil, !v.marks().DestroyAt.IsZero():
		return fault.New(fault.KeyDisabled, "key %d is to be destroyed", k.Index)
	default:
		return fault.New(fault.KeyDisabled, "key %d has no version that seals: the newest is %s", k.Index, v.State)
	}
}

// seals reports whether the key seals.
func (k *Key) seals() bool { return k.Newest().State == life.Active }

// opens reports whether a version opens what it sealed, for every app that is granted it.
func (k *Key) opens(v *Version) bool {
	return k.Suspended == nil && k.DestroyAt == nil && (v.State == life.Active || v.State == life.Deactivated) &&
		(v.Marks == nil || v.Marks.DestroyAt.IsZero())
}

// cannotOpen says why a version does not open for an app; nil when it does, being
// compromised, but granted.
func (k *Key) cannotOpen(number uint32, caller *auth.Caller) error {
	v := k.Version(number)
	switch {
	case k.gone(number):
		return fault.New(fault.KeyDestroyed, "version %d of key %d is destroyed", number, k.Index)
	case v == nil:
		return fault.DecryptFailed
	case k.Suspended != nil:
		return fault.New(fault.KeyDisabled, "key %d is suspended", k.Index)
	case k.DestroyAt != nil, !v.marks().DestroyAt.IsZero():
		return fault.New(fault.KeyDisabled, "version %d of key %d is to be destroyed", number, k.Index)
	case v.State != life.Compromised:
		return fault.New(fault.KeyDisabled, "version %d of key %d is %s", number, k.Index, v.State)
	case !caller.Allows(policy.DecryptCompromised, k.Index):
		return fault.New(fault.Forbidden, "version %d of key %d is compromised: to open what it sealed, the app needs the grant %s too", number, k.Index, policy.DecryptCompromised)
	}
	return nil
}
