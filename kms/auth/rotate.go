package auth

import (
	"context"
	"errors"
	"slices"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/life"
	"github.com/trikey/trikey/kms/record"
)

// RotateSecret gives an app one more secret, which is valid for the given time, or without
// an end if that is zero. The one before stays valid until it expires, is dropped, or the next
// rotation; any older one is deleted.
func (a *Apps) RotateSecret(ctx context.Context, name string, valid life.Period) (c Credentials, err error) {
	secret := newSecret()
	var entry string
	app, err := a.changeSecrets(ctx, name, func(app *App) (changes []record.Change, err error) {
		next := newSecretOf(app.Secrets[len(app.Secrets)-1].Number+1, a.now().UTC(), valid)
		app.Secrets = append(app.Secrets, next)
		for len(app.Secrets) > MaxSecrets {
			gone, err := a.deletion(ctx, app, 0)
			if err != nil {
				return nil, err
			}
			changes = append(changes, gone)
		}
		entry = secretEntry(app.AppKey, next.Number)
		return append(changes, record.Create(entry, slices.Clone(secret))), nil
	})
	if err != nil {
		return Credentials{}, err
	}
	return a.credentials(app, entry, secret, app.revision)
}

// DropSecret deletes the older of an app's two secrets.
func (a *Apps) DropSecret(ctx context.Context, name string) (*App, error) {
	return a.changeSecrets(ctx, name, func(app *App) ([]record.Change, error) {
		if len(app.Secrets) < MaxSecrets {
			return nil, fault.New(fault.Conflict, "app %q has one secret only; make another first (trikey app rotate-secret %s), or disable the app", name, name)
		}
		gone, err := a.deletion(ctx, app, 0)
		return []record.Change{gone}, err
	})
}

// deletion takes a secret off an app, and is the change that deletes it.
func (a *Apps) deletion(ctx context.Context, app *App, i int) (record.Change, error) {
	r, err := a.keep.Get(ctx, secretEntry(app.AppKey, app.Secrets[i].Number))
	if err != nil {
		return record.Change{}, err
	}
	clear(r.Content)
	app.Secrets = slices.Delete(app.Secrets, i, i+1)
	return record.Delete(r), nil
}

// changeSecrets lets f change an app's list of secrets, and stores that together with the
// changes that f returns. When somebody else was faster it begins again.
func (a *Apps) changeSecrets(ctx context.Context, name string, f func(*App) ([]record.Change, error)) (*App, error) {
	for {
		app, err := a.tryChangeSecrets(ctx, name, f)
		if !errors.Is(err, keystore.ErrConflict) && !errors.Is(err, record.ErrRotated) {
			return app, err
		}
	}
}

func (a *Apps) tryChangeSecrets(ctx context.Context, name string, f func(*App) ([]record.Change, error)) (*App, error) {
	r, err := a.keep.Get(ctx, appPrefix+name)
	if errors.Is(err, keystore.ErrNotFound) {
		return nil, noApp(name)
	}
	if err != nil {
		return nil, err
	}
	app := &App{}
	if err := r.Decode(app); err != nil {
		return nil, err
	}
	changes, err := f(app)
	if err != nil {
		return nil, err
	}
	content, err := record.JSON(app)
	if err != nil {
		return nil, err
	}
	if app.revision, err = a.keep.Apply(ctx, append(changes, record.Replace(r, content))...); err != nil {
		return nil, err
	}
	a.put(app)
	return app, nil
}
