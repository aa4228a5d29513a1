package kms

import (
	"context"
	"errors"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/alg"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/record"
)

// Actor is who asks for a management operation, as the log names them.
type Actor string

// NewKey is what a key shall be.
type NewKey struct {
	Index      uint32      // 0: the lowest that is free
	Name       string      // "": key-INDEX
	Purpose    hsm.Purpose // 0: seal
	Algorithm  alg.ID      // 0: the usual one of the purpose
	Exportable bool        // bound in the wrapped key for good
	Published  bool        // sign: public keys are in the key set that anybody may read

	Settings  Settings
	PreActive bool // it shall not seal before ActivateKey

	// Version is the number of an imported key's first version, 1 when 0: ciphertexts name
	// theirs, so that those made elsewhere open only under the same index and version.
	Version uint32

	imported bool
	tokens   bool // made by the service itself, to sign tokens
}

// fill puts in what was left out, and checks that it goes together.
func (n *NewKey) fill() error {
	if n.Purpose == 0 {
		n.Purpose = hsm.PurposeSeal
	}
	if n.Algorithm == 0 {
		n.Algorithm = n.Purpose.Usual()
	}
	if n.Published && n.Purpose != hsm.PurposeSign {
		return fault.New(fault.BadRequest, "publish: only a key of the purpose sign has a public key")
	}
	return n.Purpose.Check(n.Algorithm)
}

// maker has the machine make a business key, or take one in.
type maker func(context.Context, hsm.Binding) (hsm.GeneratedKey, error)

var keyName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,63}$`)

// check reports what is wrong with a key that came out of a record: that it is not
// the one its entry is named for, or that a wrapped key in it is another's. A key that is
// locked is looked at when it is unlocked.
func (k *Key) check(entry string) error {
	if entry != keyEntry(k.Index) || len(k.Versions) == 0 {
		return fault.New(fault.RecordDamaged, "record %s: is not the key that it is named for", entry)
	}
	for i, v := range k.Versions {
		if i > 0 && k.Versions[i-1].Version >= v.Version || v.Version <= k.Forgotten {
			return fault.New(fault.RecordDamaged, "record %s: version %d is out of order", entry, v.Version)
		}
		if v.Locked != "" && v.Wrapped == "" && v.State != life.Destroyed {
			continue
		}
		if v.State == life.Destroyed {
			if v.Wrapped == "" && v.Locked == "" {
				continue
			}
			return fault.New(fault.RecordDamaged, "record %s: version %d is destroyed and still has its key", entry, v.Version)
		}
		h, err := v.Wrapped.Header()
		if err != nil || h.Index != k.Index || h.Version != v.Version {
			return fault.New(fault.RecordDamaged, "record %s: the wrapped key of version %d is another's", entry, v.Version)
		}
		if h.Purpose != k.For {
			return fault.New(fault.RecordDamaged, "record %s: the wrapped key of version %d is for another purpose", entry, v.Version)
		}
	}
	return nil
}

// CreateKey has the machine make a business key, and stores it wrapped.
func (s *Service) CreateKey(ctx context.Context, who Actor, n NewKey) (*Key, error) {
	return s.addKey(ctx, who, n, "key created", s.cfg.Machine.GenerateKey)
}

func (s *Service) addKey(ctx context.Context, who Actor, n NewKey, what string, from maker) (*Key, error) {
	l, err := s.serving()
	if err != nil {
		return nil, err
	}
	if err := n.fill(); err != nil {
		return nil, err
	}
	for {
		k, err := s.createKey(ctx, l, n, from)
		if n.Index == 0 && errors.Is(err, fault.Conflict) && (n.Name == "" || l.keys.named(n.Name) == nil) {
			continue // somebody took the index meanwhile
		}
		if errors.Is(err, record.ErrRotated) {
			continue // the key was wrapped by the root before
		}
		if err == nil {
			s.cfg.Log.Info(what, "by", who, "index", k.Index, "name", k.Name, "algorithm", k.Algorithm, "purpose", n.Purpose.String(), "kcv", k.Newest().KCV)
		}
		return k, err
	}
}

func (s *Service) createKey(ctx context.Context, l *loaded, n NewKey, from maker) (*Key, error) {
	if n.Index == 0 {
		n.Index = l.keys.free(func(from uint32) uint32 { return l.ranges.next(from, n.Settings.Owner) })
	}
	if n.Index == 0 {
		return nil, fault.New(fault.TooLarge, "index: every key index is taken, or reserved for another app")
	}
	if n.Name == "" {
		n.Name = "key-" + indexRef(n.Index)
	}
	k, changes, err := s.draft(ctx, l, n, from)
	if err != nil {
		return nil, err
	}
	k.revision, err = s.keep.Apply(ctx, changes...)
	if errors.Is(err, keystore.ErrConflict) {
		return nil, fault.New(fault.Conflict, "key %d or the name %q was taken at the same moment by another caller", n.Index, n.Name)
	}
	if err != nil {
		return nil, err
	}
	return k, l.keys.put(k)
}

// draft makes a key with its first version, and the changes that store it.
func (s *Service) draft(ctx context.Context, l *loaded, n NewKey, from maker) (*Key, []record.Change, error) {
	if !keyName.MatchString(n.Name) {
		return nil, nil, fault.New(fault.BadRequest, "name: %q is not a letter followed by at most 63 letters, digits, dots, dashes or underscores", n.Name)
	}
	switch {
	case l.keys.has(n.Index):
		return nil, nil, fault.New(fault.Conflict, "index: there is a key %d already; keys are never overwritten: rotate it, or take another index", n.Index)
	case l.keys.named(n.Name) != nil:
		return nil, nil, fault.New(fault.Conflict, "name: there is a key %q already (index %d)", n.Name, l.keys.named(n.Name).Index)
	}
	if err := l.checkSettings(n.Index, n.Settings); err != nil {
		return nil, nil, err
	}
	k := &Key{Index: n.Index, Name: n.Name, Algorithm: n.Algorithm, For: n.Purpose, Created: s.now(), Published: n.Published, Tokens: n.tokens}
	if !reflect.ValueOf(n.Settings).IsZero() {
		k.Settings = &n.Settings
	}
	v, err := s.newVersion(ctx, hsm.Binding{Index: n.Index, Version: l.unused(n.Index, max(n.Version, 1)), Algorithm: n.Algorithm, Purpose: n.Purpose, Exportable: n.Exportable}, from)
	if err != nil {
		return nil, nil, err
	}
	v.Imported = n.imported
	if n.PreActive {
		v.State = life.PreActive
	}
	k.Versions = []Version{v}
	content, err := l.content(k)
	if err != nil {
		return nil, nil, err
	}
	name, err := record.JSON(n.Index)
	if err != nil {
		return nil, nil, err
	}
	return k, []record.Change{
		record.Create(keyEntry(k.Index), content).Under(v.Wrapped.Generation()),
		record.Create(namePrefix+k.Name, name),
	}, nil
}

// newVersion has the machine make a version. It is record.ErrRotated when the machine
// and the records are at different roots, as they are for a moment of a rotation.
func (s *Service) newVersion(ctx context.Context, b hsm.Binding, from maker) (Version, error) {
	generation := s.keep.Generation()
	made, err := from(ctx, b)
	if err != nil {
		return Version{}, err
	}
	if made.Wrapped.Generation() != generation {
		return Version{}, record.ErrRotated
	}
	v := Version{Version: b.Version, State: life.Active, KCV: made.KCV, Wrapped: made.Wrapped, Created: s.now()}
	if b.Purpose == hsm.PurposeSign {
		ops := []hsm.Op{{Kind: hsm.PublicKey, Key: made.Wrapped}}
		if err := errors.Join(s.cfg.Machine.Do(ctx, ops), ops[0].Err); err != nil {
			return Version{}, err
		}
		v.Public = ops[0].Output
	}
	return v, nil
}

// RotateKey gives a key a new version, which seals from then on. The one before is
// deactivated: it keeps opening what it sealed.
func (s *Service) RotateKey(ctx context.Context, who Actor, index uint32) (*Key, error) {
	return s.rotate(ctx, who, index, func(*Key) bool { return true })
}

// errNotDue: a rotation was not needed any more.
var errNotDue = errors.New("kms: the rotation is not due")

// rotate rotates a key if it is still due when its record is changed.
func (s *Service) rotate(ctx context.Context, who Actor, index uint32, due func(*Key) bool) (*Key, error) {
	return s.change(ctx, who, index, "key rotated", func(l *loaded, k *Key) error {
		switch before := k.Newest(); {
		case !due(k):
			return errNotDue
		case k.Current().State == life.Destroyed:
			return fault.New(fault.KeyDestroyed, "key %d is destroyed; make another one", k.Index)
		case k.Suspended != nil:
			return fault.New(fault.KeyDisabled, "key %d is suspended; resume it first (trikey key resume %d)", k.Index, k.Index)
		case k.DestroyAt != nil:
			return fault.New(fault.KeyDisabled, "key %d is to be destroyed on %s; cancel that first (trikey key cancel-destroy %d)",
				k.Index, k.DestroyAt.Format(time.RFC3339), k.Index)
		case before.State == life.PreActive:
			return fault.New(fault.Conflict, "version %d of key %d is not active yet; activate it (trikey key activate %d)", before.Version, k.Index, k.Index)
		}
		b := k.binding()
		b.Version = l.unused(k.Index, k.Newest().Version+1)
		v, err := s.newVersion(ctx, b, s.cfg.Machine.GenerateKey)
		if err != nil {
			return err
		}
		for i := range k.Versions {
			if old := &k.Versions[i]; old.State.May(life.Deactivated) {
				if err := old.become(life.Deactivated, v.Created); err != nil {
					return err
				}
			}
		}
		k.Versions = append(slices.Clip(k.Versions), v)
		return nil
	})
}

// FindKey returns the key of that index or name.
func (s *Service) FindKey(ref string) (*Key, error) {
	l, err := s.serving()
	if err != nil {
		return nil, err
	}
	if k := l.keys.find(ref); k != nil {
		return k, nil
	}
	return nil, noKey(ref)
}

// ListKeys returns every key in order of index. There may be a million of them.
func (s *Service) ListKeys() ([]*Key, error) { return s.ListKeysFrom(0, 1<<32) }

// ListKeysFrom returns at most limit keys in order of index, from an index on.
func (s *Service) ListKeysFrom(from uint32, limit int) ([]*Key, error) {
	l, err := s.serving()
	if err != nil {
		return nil, err
	}
	all := l.keys.indexes(from)
	return l.keys.keysOf(all[:min(limit, len(all))]), nil
}

// parseIndex reads a reference that is an index; no name begins with a digit.
func parseIndex(ref string) (uint32, bool) {
	index, err := strconv.ParseUint(ref, 10, 32)
	return uint32(index), err == nil
}

func indexRef(index uint32) string { return strconv.FormatUint(uint64(index), 10) }
