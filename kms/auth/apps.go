// Package auth knows the apps that may call the data plane: their keys, secrets,
// addresses and grants.
//
// An app's record is sealed by the machine like every record; its secrets are
// records of their own, so that the record can be shown and logged. Of a secret
// only the digest stays in memory.
package auth

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/policy"
	"github.com/trikey/trikey/kms/record"
)

// Names of entries in the key store.
const (
	Prefix       = "apps/"            // all of the below
	appPrefix    = Prefix + "app/"    // apps/app/NAME: an App
	secretPrefix = Prefix + "secret/" // apps/secret/APPKEY/N: the secret's bytes
)

// MaxSecrets is how many secrets of an app are valid at a time: the newest, and
// the one before it while its users move over.
const MaxSecrets = 2

// App is an application that may call. Apps are shared and never changed in
// place.
type App struct {
	Name      string           `json:"name"`
	AppKey    string           `json:"app_key"`
	Disabled  bool             `json:"disabled,omitzero"`
	Created   time.Time        `json:"created"`
	Secrets   []Secret         `json:"secrets"` // newest last
	Whitelist policy.Whitelist `json:"allow_ip"`
	Grants    policy.Grants    `json:"grants"`

	revision int64 // the store's, of the record that this is
}

// Secret describes one of an app's secrets.
type Secret struct {
	Number  uint32    `json:"number"`
	Created time.Time `json:"created"`
}

type digest = [sha256.Size]byte

// Apps is the registry of apps.
type Apps struct {
	keep      *record.Keeper
	grantable func(app string, g policy.Grants) error

	mu      sync.RWMutex // guards all below
	byName  map[string]*App
	byKey   map[string]*App
	digests map[string]storedDigest // of secrets, by the name of their record
}

type storedDigest struct {
	digest   digest
	revision int64
}

// New returns an empty registry. What grantable reports of grants that an app is to be
// given keeps them from being given.
func New(keep *record.Keeper, grantable func(app string, g policy.Grants) error) *Apps {
	return &Apps{keep: keep, grantable: grantable, byName: map[string]*App{}, byKey: map[string]*App{}, digests: map[string]storedDigest{}}
}

// Grantable reports why an app cannot be given grants, nil when it can. Create and Change
// refuse them too; but what an app was given before a key got its owner is not given
// anew by a Change, and only Grantable sees that it was asked for.
func (a *Apps) Grantable(app string, g policy.Grants) error { return a.grantable(app, g) }

// Apply takes a record in. Records may arrive twice and in any order.
func (a *Apps) Apply(r record.Record) error {
	if strings.HasPrefix(r.Name, secretPrefix) {
		d := storedDigest{sha256.Sum256(r.Content), r.Entry}
		clear(r.Content)
		a.mu.Lock()
		defer a.mu.Unlock()
		if old, ok := a.digests[r.Name]; !ok || old.revision < d.revision {
			a.digests[r.Name] = d
		}
		return nil
	}
	app := &App{revision: r.Entry}
	if err := r.Decode(app); err != nil {
		return err
	}
	if r.Name != appPrefix+app.Name {
		return fault.New(fault.RecordDamaged, "record %s: is not the app that it is named for", r.Name)
	}
	a.put(app)
	return nil
}

func (a *Apps) put(app *App) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.byName[app.Name]; old != nil && old.revision >= app.revision {
		return
	}
	a.byName[app.Name] = app
	a.byKey[app.AppKey] = app
}

// Remove takes a record out that was deleted by the given revision.
func (a *Apps) Remove(name string, revision int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d, ok := a.digests[name]; ok && d.revision < revision {
		delete(a.digests, name)
	}
	if app := a.byName[strings.TrimPrefix(name, appPrefix)]; app != nil && appPrefix+app.Name == name && app.revision < revision {
		delete(a.byName, app.Name)
		delete(a.byKey, app.AppKey)
	}
}

// Wipe forgets every digest.
func (a *Apps) Wipe() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.digests)
	clear(a.byKey)
	clear(a.byName)
}

// Len returns the number of apps.
func (a *Apps) Len() int {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return len(a.byName)
}

func secretEntry(appKey string, number uint32) string {
	return fmt.Sprintf("%s%s/%d", secretPrefix, appKey, number)
}

// errUnauthorized is the same for an AppKey that is not known, a secret that is
// wrong and an app that is disabled.
var errUnauthorized = fault.New(fault.Unauthorized, "the AppKey or AppSecret is not valid")

// Authenticate returns the app of an AppKey as a caller, if the secret is one of its and
// the address is on its whitelist. An app that is known and may not call from there is
// returned beside the error.
func (a *Apps) Authenticate(appKey, secret string, from netip.Addr) (*Caller, error) {
	presented := sha256.Sum256([]byte(secret))
	a.mu.RLock()
	app := a.byKey[appKey]
	var valid [MaxSecrets]digest
	known := 0
	if app != nil {
		for _, s := range app.Secrets {
			if d, ok := a.digests[secretEntry(appKey, s.Number)]; ok && known < MaxSecrets {
				valid[known] = d.digest
				known++
			}
		}
	}
	a.mu.RUnlock()
	// Every place is compared, filled or not, so that an unknown AppKey costs what a
	// known one does.
	match := 0
	for i := range valid {
		equal := subtle.ConstantTimeCompare(presented[:], valid[i][:])
		if i < known {
			match |= equal
		}
	}
	switch {
	case app == nil, match == 0, app.Disabled:
		return nil, errUnauthorized
	case !app.Whitelist.Allows(from):
		return &Caller{App: app, Method: Basic}, fault.New(fault.IPNotAllowed, "the address %s is not on the app's whitelist", from.Unmap())
	}
	return &Caller{App: app, Method: Basic}, nil
}

// Entry is the name of an app's record.
func Entry(name string) string { return appPrefix + name }

// Find returns the app of that name, as it is known here.
func (a *Apps) Find(name string) (*App, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if app := a.byName[name]; app != nil {
		return app, nil
	}
	return nil, noApp(name)
}

func noApp(name string) error {
	return fault.New(fault.NotFound, "there is no app %q; trikey app list shows those there are", name)
}

// List returns all apps in order of their names.
func (a *Apps) List() []*App {
	a.mu.RLock()
	defer a.mu.RUnlock()
	all := make([]*App, 0, len(a.byName))
	for _, app := range a.byName {
		all = append(all, app)
	}
	slices.SortFunc(all, func(x, y *App) int { return cmp.Compare(x.Name, y.Name) })
	return all
}

// Credentials are what an app calls with. The secret is shown once, when it is
// made.
type Credentials struct {
	Name      string `json:"name"`
	AppKey    string `json:"app_key"`
	AppSecret string `json:"app_secret"`
}

var appName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,63}$`)

// newSecret draws a secret of 256 random bits.
func newSecret() []byte {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	return base64.RawURLEncoding.AppendEncode(nil, raw[:])
}

func newAppKey() string {
	var raw [10]byte
	_, _ = rand.Read(raw[:]) // never fails
	return "ak" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw[:]))
}

// Create makes an app.
func (a *Apps) Create(ctx context.Context, name string, allow policy.Whitelist, grants policy.Grants, now time.Time) (Credentials, error) {
	if !appName.MatchString(name) {
		return Credentials{}, fault.New(fault.BadRequest, "name: %q is not a letter followed by at most 63 letters, digits, dots, dashes or underscores", name)
	}
	if err := a.grantable(name, grants); err != nil {
		return Credentials{}, err
	}
	app := &App{
		Name: name, AppKey: newAppKey(), Created: now.UTC(), Whitelist: allow, Grants: grants,
		Secrets: []Secret{{Number: 1, Created: now.UTC()}},
	}
	content, err := record.JSON(app)
	if err != nil {
		return Credentials{}, err
	}
	secret := newSecret()
	entry := secretEntry(app.AppKey, 1)
	revision, err := a.keep.Apply(ctx, record.Create(appPrefix+name, content), record.Create(entry, secret))
	if errors.Is(err, record.ErrRotated) {
		return a.Create(ctx, name, allow, grants, now)
	}
	if errors.Is(err, keystore.ErrConflict) {
		return Credentials{}, fault.New(fault.Conflict, "name: there is an app %q already", name)
	}
	if err != nil {
		return Credentials{}, err
	}
	app.revision = revision
	a.put(app)
	return a.credentials(app, entry, secret, revision)
}

// credentials shows a new secret, and takes it in.
func (a *Apps) credentials(app *App, entry string, secret []byte, revision int64) (Credentials, error) {
	c := Credentials{Name: app.Name, AppKey: app.AppKey, AppSecret: string(secret)}
	return c, a.Apply(record.Record{Name: entry, Content: bytes.Clone(secret), Entry: revision})
}

// RotateSecret gives an app one more secret. The one before stays valid until the
// next rotation; any older one is deleted.
func (a *Apps) RotateSecret(ctx context.Context, name string, now time.Time) (Credentials, error) {
	for {
		c, err := a.rotateSecret(ctx, name, now)
		if !errors.Is(err, keystore.ErrConflict) && !errors.Is(err, record.ErrRotated) {
			return c, err
		}
	}
}

func (a *Apps) rotateSecret(ctx context.Context, name string, now time.Time) (Credentials, error) {
	r, err := a.keep.Get(ctx, appPrefix+name)
	if errors.Is(err, keystore.ErrNotFound) {
		return Credentials{}, noApp(name)
	}
	if err != nil {
		return Credentials{}, err
	}
	app := &App{}
	if err := r.Decode(app); err != nil {
		return Credentials{}, err
	}
	next := Secret{Number: app.Secrets[len(app.Secrets)-1].Number + 1, Created: now.UTC()}
	app.Secrets = append(app.Secrets, next)
	var changes []record.Change
	for len(app.Secrets) > MaxSecrets {
		old, err := a.keep.Get(ctx, secretEntry(app.AppKey, app.Secrets[0].Number))
		if err != nil {
			return Credentials{}, err
		}
		clear(old.Content)
		changes = append(changes, record.Delete(old))
		app.Secrets = app.Secrets[1:]
	}
	content, err := record.JSON(app)
	if err != nil {
		return Credentials{}, err
	}
	secret := newSecret()
	entry := secretEntry(app.AppKey, next.Number)
	revision, err := a.keep.Apply(ctx, append(changes, record.Replace(r, content), record.Create(entry, secret))...)
	if err != nil {
		return Credentials{}, err
	}
	app.revision = revision
	a.put(app)
	return a.credentials(app, entry, secret, revision)
}

// Change lets f change an app's whitelist, grants or state, and stores that.
func (a *Apps) Change(ctx context.Context, name string, f func(*App) error) (*App, error) {
	app, revision, err := record.Update(ctx, a.keep, appPrefix+name, func(app *App) error {
		before := app.Grants
		if err := f(app); err != nil {
			return err
		}
		return a.grantable(name, app.Grants.Remove(before)) // what it had already is not given now
	})
	if errors.Is(err, keystore.ErrNotFound) {
		return nil, noApp(name)
	}
	if err != nil {
		return nil, err
	}
	app.revision = revision
	a.put(&app)
	return &app, nil
}
