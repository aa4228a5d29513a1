package api

import (
	"fmt"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/life"
)

// validity reads for how long a secret shall be valid; 0 is without an end.
func validity(text string) (life.Period, error) {
	if text == "" {
		return 0, nil
	}
	return life.ParsePeriod(text)
}

func (a admin) adminApp(apps *auth.Apps, app *auth.App) v1.AdminApp {
	out := v1.AdminApp{
		Name: app.Name, AppKey: app.AppKey, State: "active", AllowIP: []string{}, Grants: app.Grants.Strings(),
		Created: app.Created, Rotated: app.Secrets[len(app.Secrets)-1].Created,
		ValidSecrets: []v1.AdminSecret{}, Certificates: []v1.AdminPin{},
	}
	if app.Disabled {
		out.State = "disabled"
	}
	for _, p := range app.Whitelist {
		out.AllowIP = append(out.AllowIP, p.String())
	}
	now := time.Now()
	for _, s := range apps.Secrets(app) {
		if !s.Expired(now) {
			out.Secrets++
			out.ValidSecrets = append(out.ValidSecrets, v1.AdminSecret{Number: s.Number, Created: s.Created, Expires: s.Expires, Used: s.Used})
		}
		if w := warning(&s.Secret, now); w != "" {
			out.Warnings = append(out.Warnings, w)
		}
	}
	for _, pin := range apps.Pins(app.Name) {
		out.Certificates = append(out.Certificates, v1.AdminPin{SPKI: pin.SPKI.String(), Added: pin.Added})
	}
	return a.held(out, app)
}

// warning says that a secret expires soon, or has; "" when neither.
func warning(s *auth.Secret, now time.Time) string {
	switch {
	case s.Expired(now):
		return fmt.Sprintf("secret %d expired at %s", s.Number, s.Expires.Format(time.RFC3339))
	case s.Expiring(now):
		return fmt.Sprintf("secret %d expires at %s; make another (trikey app rotate-secret)", s.Number, s.Expires.Format(time.RFC3339))
	}
	return ""
}

func (a admin) rotateSecret(r *http.Request, in v1.NewSecret) (v1.Credentials, error) {
	apps, err := a.service.Apps()
	if err != nil {
		return v1.Credentials{}, err
	}
	valid, err := validity(in.Expires)
	if err != nil {
		return v1.Credentials{}, err
	}
	c, err := apps.RotateSecret(r.Context(), chi.URLParam(r, "app"), valid)
	logged(r, "app secret rotated", c.Name, err)
	return credentials(c, err)
}

func (a admin) dropSecret(r *http.Request, _ jsonhttp.None) (v1.AdminApp, error) {
	return a.changed(r, "app secret dropped", func(apps *auth.Apps, name string) error {
		_, err := apps.DropSecret(r.Context(), name)
		return err
	})
}

func (a admin) addCertificate(r *http.Request, in v1.Certificate) (v1.AdminApp, error) {
	return a.changed(r, "app certificate added", func(apps *auth.Apps, name string) error {
		spki, err := auth.ParseSPKI(in.SPKI)
		if err != nil {
			return err
		}
		return apps.AddPin(r.Context(), name, spki)
	})
}

func (a admin) removeCertificate(r *http.Request, _ jsonhttp.None) (v1.AdminApp, error) {
	return a.changed(r, "app certificate removed", func(apps *auth.Apps, name string) error {
		spki, err := auth.ParseSPKI(chi.URLParam(r, "spki"))
		if err != nil {
			return err
		}
		return apps.RemovePin(r.Context(), name, spki)
	})
}

// changed carries out a change of the app in the path, and shows the app as it is then.
func (a admin) changed(r *http.Request, what string, change func(*auth.Apps, string) error) (v1.AdminApp, error) {
	apps, err := a.service.Apps()
	if err != nil {
		return v1.AdminApp{}, err
	}
	name := chi.URLParam(r, "app")
	err = change(apps, name)
	logged(r, what, name, err)
	if err != nil {
		return v1.AdminApp{}, err
	}
	app, err := apps.Find(name)
	if err != nil {
		return v1.AdminApp{}, err
	}
	return a.adminApp(apps, app), nil
}
