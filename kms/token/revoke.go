package token

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/record"
)

// Names of entries in the key store.
const (
	Prefix        = "tokens/"           // all of the below
	revokedPrefix = Prefix + "revoked/" // tokens/revoked/JTI: a revoked token
	beforePrefix  = Prefix + "before/"  // tokens/before/SUBJECT: a watermark
)

// revocation is the content of a record: of one token, or, as a watermark, of all that
// were issued at the moment Before or earlier.
type revocation struct {
	Before  int64     `json:"before,omitzero"`
	Expires int64     `json:"expires"` // when every token that it stops has expired: then it can go
	By      string    `json:"by"`
	Made    time.Time `json:"made"`
}

// revocations are the records in memory.
type revocations struct {
	mu     sync.RWMutex // guards all below
	byName map[string]known
}

type known struct {
	before, expires int64
	revision        int64 // the store's
}

func newRevocations() revocations { return revocations{byName: map[string]known{}} }

func (r *revocations) put(name string, k known) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byName[name].revision < k.revision {
		r.byName[name] = k
	}
}

// has reports whether a token was revoked, by itself or with others.
func (r *revocations) has(c *Claims) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.byName) == 0 {
		return false
	}
	_, revoked := r.byName[revokedPrefix+c.ID]
	return revoked || c.Issued <= r.latest(c)
}

// watermark is the latest moment up to which tokens like this one were revoked.
func (r *revocations) watermark(c *Claims) int64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.latest(c)
}

func (r *revocations) latest(c *Claims) int64 {
	switch c.Class {
	case App:
		return r.byName[beforeApp(c.ClientID)].before
	case User:
		return max(r.byName[beforeApp(c.ClientID)].before, r.byName[beforeUser(c.ClientID, c.Subject)].before)
	}
	return r.byName[beforePerson(c.Subject)].before
}

func beforeApp(appKey string) string { return beforePrefix + "app/" + appKey }

// A user's or a person's name can be any text: the record has its digest.
func beforeUser(appKey, user string) string {
	return beforePrefix + "user/" + appKey + "/" + hashed(user)
}
func beforePerson(name string) string { return beforePrefix + "person/" + hashed(name) }

func hashed(name string) string {
	d := sha256.Sum256([]byte(name))
	return hex.EncodeToString(d[:])
}

// Apply takes a record in. Records may arrive twice and in any order.
func (a *Authority) Apply(r record.Record) error {
	var stored revocation
	if err := r.Decode(&stored); err != nil {
		return err
	}
	if strings.HasPrefix(r.Name, beforePrefix) != (stored.Before != 0) {
		return fault.New(fault.RecordDamaged, "record %s: is not the revocation that it is named for", r.Name)
	}
	a.revoked.put(r.Name, known{stored.Before, stored.Expires, r.Entry})
	return nil
}

// Remove takes a record out that was deleted by the given revision. A revocation that
// still stops tokens is kept: the service deletes none, so whoever did has no right to.
func (a *Authority) Remove(name string, revision int64) {
	now := a.now().Unix()
	a.revoked.mu.Lock()
	defer a.revoked.mu.Unlock()
	if k, ok := a.revoked.byName[name]; ok && k.revision < revision && k.expires < now {
		delete(a.revoked.byName, name)
	}
}

// Revoke revokes one token, by its claims.
func (a *Authority) Revoke(ctx context.Context, by string, c *Claims) error {
	return a.revoke(ctx, revokedPrefix+c.ID, revocation{Expires: c.Expires, By: by})
}

var idForm = regexp.MustCompile(`^[a-z2-7]{24}$`)

// RevokeID revokes one token that only its id is known of: for as long as any token lasts.
func (a *Authority) RevokeID(ctx context.Context, by, id string) error {
	if !idForm.MatchString(id) {
		return fault.New(fault.BadRequest, "id: %.32q is not the id of a token (24 small letters and digits)", id)
	}
	return a.Revoke(ctx, by, &Claims{ID: id, Expires: a.now().Add(MaxUser).Unix()})
}

// RevokeApp revokes every token of an app that was issued up to now, those of its users
// too.
func (a *Authority) RevokeApp(ctx context.Context, by, appKey string) error {
	return a.revokeBefore(ctx, by, beforeApp(appKey), MaxUser)
}

// RevokeUser revokes every token of an app's user that was issued up to now.
func (a *Authority) RevokeUser(ctx context.Context, by, appKey, user string) error {
	if err := checkName("user", user); err != nil {
		return err
	}
	return a.revokeBefore(ctx, by, beforeUser(appKey, user), MaxUser)
}

// RevokePerson revokes every token of an administrator or auditor that was issued up to
// now.
func (a *Authority) RevokePerson(ctx context.Context, by, name string) error {
	return a.revokeBefore(ctx, by, beforePerson(name), MaxAdmin)
}

// revokeBefore sets a watermark. It is ahead of this node's clock, so that tokens are
// revoked that a node issued whose clock is.
func (a *Authority) revokeBefore(ctx context.Context, by, name string, most time.Duration) error {
	before := a.now().Add(skew)
	return a.revoke(ctx, name, revocation{Before: before.Unix(), Expires: before.Add(most + drift).Unix(), By: by})
}

func (a *Authority) revoke(ctx context.Context, name string, r revocation) error {
	r.Made = a.now().UTC()
	content, err := record.JSON(r)
	if err != nil {
		return err
	}
	for {
		old, err := a.keep.Get(ctx, name)
		var stored revocation
		switch {
		case errors.Is(err, keystore.ErrNotFound):
			old = record.Record{Name: name}
		case err != nil:
			return err
		default:
			if err := old.Decode(&stored); err != nil {
				return err
			}
			if stored.Before >= r.Before { // revoked already
				a.revoked.put(name, known{stored.Before, stored.Expires, old.Entry})
				return nil
			}
		}
		revision, err := a.keep.Apply(ctx, record.Replace(old, content))
		if errors.Is(err, keystore.ErrConflict) || errors.Is(err, record.ErrRotated) {
			continue
		}
		if err == nil {
			a.revoked.put(name, known{r.Before, r.Expires, revision})
		}
		return err
	}
}

// pruned is how many records go in one transaction: with the three entries that
// the index of revisions may need for each it stays within keystore.MaxTxn.
const pruned = 40

// Stale returns the names of records that stop no token any more, some at a time.
func (a *Authority) Stale() (names []string) {
	now := a.now().Add(-drift).Unix()
	a.revoked.mu.RLock()
	defer a.revoked.mu.RUnlock()
	for name, k := range a.revoked.byName {
		if k.expires < now && len(names) < pruned {
			names = append(names, name)
		}
	}
	return names
}

// Prune deletes records that Stale named, and returns how many.
func (a *Authority) Prune(ctx context.Context, names []string) (int, error) {
	var changes []record.Change
	now := a.now().Add(-drift).Unix()
	for _, name := range names {
		r, err := a.keep.Get(ctx, name)
		if errors.Is(err, keystore.ErrNotFound) {
			a.Remove(name, math.MaxInt64)
			continue
		}
		if err != nil {
			return 0, err
		}
		var stored revocation
		if err := r.Decode(&stored); err != nil {
			return 0, err
		}
		if stored.Expires < now { // nobody has set it anew
			changes = append(changes, record.Delete(r))
		}
	}
	if len(changes) == 0 {
		return 0, nil
	}
	revision, err := a.keep.Apply(ctx, changes...)
	if err != nil {
		return 0, err
	}
	for _, c := range changes {
		a.Remove(c.Name, revision)
	}
	return len(changes), nil
}
