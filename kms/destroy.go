package kms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/record"
)

// Signer signs statements with the identity of the machine.
type Signer interface {
	Sign(ctx context.Context, context string, message []byte) (hsm.Signature, error)
}

// certificatePrefix is where certificates are: key-certificates/0000000007/0000000003.
const certificatePrefix = "key-certificates/"

func certificateEntry(index, version uint32) string {
	return fmt.Sprintf("%s%010d/%010d", certificatePrefix, index, version)
}

// certificateContext is the context of certificates' signatures.
const certificateContext = "destruction"

// Certificate states that a key version was destroyed (NIST SP 800-57 part 1, section
// 8.4 asks for such a record). The machine's identity signs it; the signature is over the
// canonical JSON (RFC 8785) of all but itself and the public key's members.
type Certificate struct {
	Index     uint32    `json:"index"`
	Name      string    `json:"name"`
	Version   uint32    `json:"version"`
	Algorithm string    `json:"algorithm"`
	KCV       string    `json:"kcv"`
	Owner     string    `json:"owner,omitempty"`
	State     string    `json:"state"`   // before
	Created   time.Time `json:"created"` // these four to the second
	SealFrom  time.Time `json:"sealed_from,omitzero"`
	SealUntil time.Time `json:"sealed_until,omitzero"`
	Destroyed time.Time `json:"destroyed"`
	Why       string    `json:"why"`
	Hold      string    `json:"hold"`              // none, or when the last one was released
	Exported  time.Time `json:"exported,omitzero"` // when last; what was given out is not destroyed by this

	*hsm.Signature `json:",inline"`
}

// message is what the signature is over.
func (c Certificate) message() ([]byte, error) {
	c.Signature = nil
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	value := jsontext.Value(raw)
	return value, value.Canonicalize()
}

// Check checks the certificate's signature, and that it is by the machine of that
// fingerprint, if one is given.
func (c Certificate) Check(fingerprint string) error {
	message, err := c.message()
	if err != nil {
		return err
	}
	if c.Signature == nil {
		return fault.New(fault.RecordDamaged, "the certificate is not signed")
	}
	return c.Signature.Check(certificateContext, message, fingerprint)
}

// Certificates returns what certifies the destruction of a key's versions, oldest first.
func (s *Service) Certificates(ctx context.Context, index uint32) ([]Certificate, error) {
	if _, err := s.serving(); err != nil {
		return nil, err
	}
	all := []Certificate{}
	_, err := s.keep.Load(ctx, fmt.Sprintf("%s%010d/", certificatePrefix, index), func(r record.Record) error {
		var c Certificate
		if err := r.Decode(&c); err != nil {
			return err
		}
		all = append(all, c)
		return c.Check("")
	})
	return all, err
}

// ordered begins why a version is destroyed that somebody has ordered to be.
const ordered = "ordered"

// condemned says why a version is to be destroyed now; "" when it is not.
func (k *Key) condemned(v *Version, now time.Time) string {
	m := v.marks()
	switch {
	case k.held() || !v.State.May(life.Destroyed):
		return ""
	case k.DestroyAt != nil && !now.Before(*k.DestroyAt):
		return ordered + ", with the whole key"
	case !m.DestroyAt.IsZero() && !now.Before(m.DestroyAt):
		return ordered
	}
	if due := k.expires(v); !due.IsZero() && !now.Before(due) {
		return fmt.Sprintf("retention of %s", k.settings().Retain)
	}
	return ""
}

// expires is when the key's retention ends for a version; zero where none is set or the
// version may still seal.
func (k *Key) expires(v *Version) time.Time {
	if ended := v.marks().Ended; k.settings().Retain != 0 && !ended.IsZero() {
		return k.settings().Retain.After(ended)
	}
	return time.Time{}
}

// maxListed is how many destroyed versions a key's record lists; the certificates of older
// ones stay.
const maxListed = 100

// destroyPage is how many versions are destroyed in one transaction.
const destroyPage = 50

// destroyTries bounds how often a destruction is tried that other changes cross.
const destroyTries = 20

// destroyDue destroys what is to be destroyed of a key, and reports how many versions that
// were.
func (s *Service) destroyDue(ctx context.Context, l *loaded, index uint32) (int, error) {
	total := 0
	for range destroyTries {
		n, err := s.destroySome(ctx, l, index)
		if errors.Is(err, keystore.ErrConflict) || errors.Is(err, record.ErrRotated) {
			continue
		}
		total += n
		if err != nil || n < destroyPage {
			return total, err
		}
	}
	return total, fault.New(fault.Conflict, "the versions of key %d could not be destroyed: its record changes all the time", index)
}

func (s *Service) destroySome(ctx context.Context, l *loaded, index uint32) (int, error) {
	r, err := s.keep.Get(ctx, keyEntry(index))
	if err != nil {
		return 0, err
	}
	k := Key{}
	if err := errors.Join(r.Decode(&k), l.unlock(&k)); err != nil {
		return 0, err
	}
	now := s.now().Truncate(time.Second)
	var changes []record.Change
	var done []Certificate
	var spared error
	var before []hsm.WrappedKey
	for i := range k.Versions {
		why := k.condemned(&k.Versions[i], s.now())
		if why == "" || len(done) == destroyPage {
			continue
		}
		if err := s.spared(ctx, &k, &k.Versions[i], why); err != nil {
			spared = err
			continue
		}
		if despite := k.despite(&k.Versions[i]); despite != "" {
			why += ", even if used: " + despite
		}
		before = append(before, k.Versions[i].Wrapped)
		c, err := s.destroyVersion(ctx, &k, &k.Versions[i], why, now)
		if err != nil {
			return 0, err
		}
		content, err := record.JSON(c)
		if err != nil {
			return 0, err
		}
		changes = append(changes, record.Create(certificateEntry(index, c.Version), content))
		done = append(done, c)
	}
	if len(done) == 0 {
		return 0, spared
	}
	k.forget()
	content, err := l.content(&k)
	if err != nil {
		return 0, err
	}
	if l.epochs != nil {
		counted, err := s.countDestruction(ctx)
		if err != nil {
			return 0, err
		}
		changes = append(changes, counted)
	}
	if k.revision, err = s.keep.Apply(ctx, append(changes, record.Replace(r, content))...); err != nil {
		return 0, err
	}
	if err := l.keys.put(&k); err != nil {
		return 0, err
	}
	for _, c := range done {
		s.cfg.Log.Info("key version destroyed", "by", steward, "index", index, "version", c.Version, "kcv", c.KCV, "why", c.Why)
	}
	return len(done), errors.Join(spared, s.erase(ctx, l, &k, before))
}

// countDestruction is the change that has the records know of one destruction more.
func (s *Service) countDestruction(ctx context.Context) (record.Change, error) {
	r, err := s.keep.Get(ctx, epochsRecord)
	if err != nil {
		return record.Change{}, err
	}
	var state epochsState
	if err := r.Decode(&state); err != nil {
		return record.Change{}, err
	}
	state.Counter++
	content, err := record.JSON(state)
	return record.Replace(r, content), err
}

// destroyVersion is the one way in which a version is destroyed: it takes the wrapped key
// out of the record and returns the certificate of it. Both count, or neither, when the
// caller stores them in one transaction. What is to forget the key then is told by
// Service.erase.
func (s *Service) destroyVersion(ctx context.Context, k *Key, v *Version, why string, now time.Time) (Certificate, error) {
	before := v.State
	from := v.Activated()
	if err := v.become(life.Destroyed, now); err != nil {
		return Certificate{}, err
	}
	v.Wrapped = ""
	c := Certificate{
		Index: k.Index, Name: k.Name, Version: v.Version, Algorithm: k.Algorithm.String(), KCV: v.KCV, Owner: k.owner(),
		State: string(before), Created: v.Created.Truncate(time.Second), Destroyed: now, Why: why, Hold: "none",
	}
	if before != life.PreActive {
		c.SealFrom, c.SealUntil = from.Truncate(time.Second), v.marks().Ended.Truncate(time.Second)
	}
	if at := v.marks().Exported; !at.IsZero() {
		c.Exported = at.Truncate(time.Second)
	}
	if k.Hold != nil {
		c.Hold = "released " + k.Hold.Released.Format(time.RFC3339)
	}
	if s.cfg.Signer == nil {
		return c, fault.New(fault.Unavailable, "no machine signs certificates here: nothing is destroyed without one")
	}
	message, err := c.message()
	if err != nil {
		return c, err
	}
	signature, err := s.cfg.Signer.Sign(ctx, certificateContext, message)
	c.Signature = &signature
	return c, err
}

// forget takes the oldest destroyed versions off the record where there are many: a key
// that is rotated for years must not outgrow the store's largest value.
func (k *Key) forget() {
	listed := 0
	for listed < len(k.Versions)-1 && k.Versions[listed].State == life.Destroyed {
		listed++
	}
	if n := listed - maxListed; n > 0 {
		k.Forgotten = k.Versions[n-1].Version
		k.Versions = slices.Clone(k.Versions[n:])
	}
}
