// Package auth knows the apps that may call the data plane: their keys, secrets,
// addresses and grants.
//
// An app's record is sealed by the machine like every record; its secrets are
// records of their own, so that the record can be shown and logged, and so are the pins
// of its client certificates, so that no two apps can have the same. A secret is kept in
// protected memory, because a signature (RFC 9421) is verified with it, and its digest,
// which a secret that is presented is compared with.
package auth

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/budget"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/limit"
	"github.com/trikey/trikey/kms/policy"
	"github.com/trikey/trikey/kms/record"
)

// Names of entries in the key store.
const (
	Prefix       = "apps/"            // all of the below
	appPrefix    = Prefix + "app/"    // apps/app/NAME: an App
	secretPrefix = Prefix + "secret/" // apps/secret/APPKEY/N: the secret's bytes
	pinPrefix    = Prefix + "pin/"    // apps/pin/HEX: a Pin
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
	Limit     *limit.Rate      `json:"limit,omitzero"`  // its own rate; nil: everybody's
	Budget    *budget.Budget   `json:"budget,omitzero"` // of what it decrypts; nil: none

	revision int64 // the store's, of the record that this is
}

// Secret describes one of an app's secrets.
type Secret struct {
	Number  uint32    `json:"number"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // not valid from then on; zero: never
}

// Apps is the registry of apps.
type Apps struct {
	keep      *record.Keeper
	grantable func(app string, g policy.Grants) error

	now   func() time.Time
	decoy *storedSecret

	mu      sync.RWMutex // guards all below
	byName  map[string]*App
	byKey   map[string]*App
	secrets map[string]*storedSecret // by the name of their record
	pins    map[SPKI]*Pin
}

// New returns an empty registry. What grantable reports of grants that an app is to be
// given keeps them from being given.
func New(keep *record.Keeper, now func() time.Time, grantable func(app string, g policy.Grants) error) *Apps {
	return &Apps{
		keep: keep, now: now, grantable: grantable, decoy: newDecoy(), byName: map[string]*App{}, byKey: map[string]*App{},
		secrets: map[string]*storedSecret{}, pins: map[SPKI]*Pin{},
	}
}

// Grantable reports why an app cannot be given grants, nil when it can. Create and Change
// refuse them too; but what an app was given before a key got its owner is not given
// anew by a Change, and only Grantable sees that it was asked for.
func (a *Apps) Grantable(app string, g policy.Grants) error { return a.grantable(app, g) }

// Apply takes a record in. Records may arrive twice and in any order.
func (a *Apps) Apply(r record.Record) error {
	switch {
	case strings.HasPrefix(r.Name, secretPrefix):
		return a.takeSecret(r)
	case strings.HasPrefix(r.Name, pinPrefix):
		return a.takePin(r)
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
	if secret := a.secrets[name]; secret != nil && secret.revision < revision {
		secret.key.Wipe()
		delete(a.secrets, name)
	}
	if pin := a.pins[pinOf(name)]; pin != nil && pin.revision < revision {
		delete(a.pins, pin.SPKI)
	}
	if app := a.byName[strings.TrimPrefix(name, appPrefix)]; app != nil && appPrefix+app.Name == name && app.revision < revision {
		delete(a.byName, app.Name)
		delete(a.byKey, app.AppKey)
	}
}

// Wipe forgets everything.
func (a *Apps) Wipe() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, secret := range a.secrets {
		secret.key.Wipe()
	}
	a.decoy.key.Wipe()
	clear(a.secrets)
	clear(a.pins)
	clear(a.byKey)
	clear(a.byName)
}

// Len returns the number of apps.
func (a *Apps) Len() int {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return len(a.byName)
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

// Create makes an app. Its secret is valid for the given time, or without an end if that
// is zero.
func (a *Apps) Create(ctx context.Context, name string, allow policy.Whitelist, grants policy.Grants, valid life.Period) (Credentials, error) {
	if !appName.MatchString(name) {
		return Credentials{}, fault.New(fault.BadRequest, "name: %q is not a letter followed by at most 63 letters, digits, dots, dashes or underscores", name)
	}
	if err := a.grantable(name, grants); err != nil {
		return Credentials{}, err
	}
	now := a.now().UTC()
	app := &App{
		Name: name, AppKey: newAppKey(), Created: now, Whitelist: allow, Grants: grants,
		Secrets: []Secret{newSecretOf(1, now, valid)},
	}
	content, err := record.JSON(app)
	if err != nil {
		return Credentials{}, err
	}
	secret := newSecret()
	entry := secretEntry(app.AppKey, 1)
	revision, err := a.keep.Apply(ctx, record.Create(appPrefix+name, content), record.Create(entry, secret))
	if errors.Is(err, record.ErrRotated) {
		return a.Create(ctx, name, allow, grants, valid)
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
