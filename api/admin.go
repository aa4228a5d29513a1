package api

import (
	"context"
	"encoding/pem"
	"log/slog"
	"net/http"

	"github.com/go-chi/chi/v5"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/keyexport"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/audit"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/lockout"
	"github.com/trikey/trikey/kms/oidc"
	"github.com/trikey/trikey/kms/policy"
)

// actor is who calls: a person by role and name, or on the socket a user, who by the
// kernel's word is the service's own, or root.
func actor(r *http.Request) kms.Actor { return actorOf(r.Context()) }

func actorOf(ctx context.Context) kms.Actor { return kms.Actor(audit.ActorOf(ctx)) }

const maxAdminBody = 64 << 10

// NewAdmin returns the admin API as it is behind a door. Every change is recorded in log
// before it is made, and how it ended; a nil log records nothing. Who may do what stands
// in access.go.
func NewAdmin(service *kms.Service, log *audit.Log, way Door) chi.Router {
	r := chi.NewRouter()
	a := admin{service, log, r, way.Lockout, way.OIDC}
	d := &door{way, service, log}
	r.Use(d.authorise, managed(log), d.gate(a))
	r.Post("/admin/v1/keys", jsonhttp.Handle(maxAdminBody, a.createKey))
	r.Get("/admin/v1/censuses", jsonhttp.Handle(maxAdminBody, a.censuses))
	r.Post("/admin/v1/censuses", jsonhttp.Handle(maxCensusBody, a.saveCensus))
	r.Post("/admin/v1/key-batches", jsonhttp.Handle(maxAdminBody, a.createKeys))
	r.Get("/admin/v1/keys", jsonhttp.Handle(maxAdminBody, a.listKeys))
	r.Get("/admin/v1/keys/{key}", jsonhttp.Handle(maxAdminBody, a.showKey))
	r.Patch("/admin/v1/keys/{key}", jsonhttp.Handle(maxAdminBody, a.changeKey))
	r.Post("/admin/v1/keys/{key}/rotate", jsonhttp.Handle(maxAdminBody, a.rotateKey))
	r.Get("/admin/v1/integrity", jsonhttp.Handle(maxAdminBody, a.integrity))
	for verb, f := range keyOrders {
		r.Post("/admin/v1/keys/{key}/"+verb, jsonhttp.Handle(maxAdminBody, a.order(f)))
	}
	r.Get("/admin/v1/keys/{key}/certificates", jsonhttp.Handle(maxAdminBody, a.certificates))
	r.Get("/admin/v1/key-ranges", jsonhttp.Handle(maxAdminBody, a.reservations))
	r.Post("/admin/v1/key-ranges", jsonhttp.Handle(maxAdminBody, a.reserve))
	r.Post("/admin/v1/keys/{key}/export", jsonhttp.Handle(maxAdminBody, a.exportKey))
	r.Post("/admin/v1/imports", jsonhttp.Handle(maxAdminBody, a.beginImport))
	r.Post("/admin/v1/imports/{id}", jsonhttp.Handle(maxAdminBody, a.finishImport))
	a.tokenRoutes(r)
	r.Post("/admin/v1/apps", jsonhttp.Handle(maxAdminBody, a.createApp))
	r.Get("/admin/v1/apps", jsonhttp.Handle(maxAdminBody, a.listApps))
	r.Get("/admin/v1/apps/{app}", jsonhttp.Handle(maxAdminBody, a.showApp))
	r.Patch("/admin/v1/apps/{app}", jsonhttp.Handle(maxAdminBody, a.changeApp))
	r.Post("/admin/v1/apps/{app}/rotate-secret", jsonhttp.Handle(maxAdminBody, a.rotateSecret))
	a.routePeople(r)
	r.Post("/admin/v1/apps/{app}/drop-secret", jsonhttp.Handle(maxAdminBody, a.dropSecret))
	r.Post("/admin/v1/apps/{app}/certificates", jsonhttp.Handle(maxAdminBody, a.addCertificate))
	r.Delete("/admin/v1/apps/{app}/certificates/{spki}", jsonhttp.Handle(maxAdminBody, a.removeCertificate))
	r.Post("/admin/v1/apps/{app}/reopen", jsonhttp.Handle(maxAdminBody, a.reopenApp))
	r.Post("/admin/v1/apps/{app}/unlock", jsonhttp.Handle(maxAdminBody, a.unlockApp))
	a.backups(r)
	return r
}

// routePeople adds the routes of people, their sessions, and what they approve.
func (a admin) routePeople(r chi.Router) {
	r.Post("/admin/v1/login", jsonhttp.Handle(maxAdminBody, a.login))
	r.Post("/admin/v1/login/oidc/begin", jsonhttp.Handle(maxAdminBody, a.beginOIDC))
	r.Post("/admin/v1/login/oidc/finish", jsonhttp.Handle(maxAdminBody, a.finishOIDC))
	r.Post("/admin/v1/enrol", jsonhttp.Handle(maxAdminBody, a.enrol))
	r.Get("/admin/v1/session", jsonhttp.Handle(maxAdminBody, a.session))
	r.Post("/admin/v1/session/logout", jsonhttp.Handle(maxAdminBody, a.logout))
	r.Post("/admin/v1/session/step-up", jsonhttp.Handle(maxAdminBody, a.stepUp))
	r.Post("/admin/v1/session/password", jsonhttp.Handle(maxAdminBody, a.changePassword))
	r.Get("/admin/v1/people", jsonhttp.Handle(maxAdminBody, a.listPeople))
	r.Post("/admin/v1/people", jsonhttp.Handle(maxAdminBody, a.invite))
	r.Post("/admin/v1/people/{person}/reset", jsonhttp.Handle(maxAdminBody, a.resetPerson))
	r.Post("/admin/v1/people/{person}/disable", jsonhttp.Handle(maxAdminBody, a.disablePerson))
	r.Post("/admin/v1/people/{person}/bind-oidc", jsonhttp.Handle(maxAdminBody, a.bindOIDC))
	r.Get("/admin/v1/approvals", jsonhttp.Handle(maxAdminBody, a.listApprovals))
	r.Get("/admin/v1/approvals/{id}", jsonhttp.Handle(maxAdminBody, a.showApproval))
	r.Post("/admin/v1/approvals/{id}/grant", jsonhttp.Handle(maxAdminBody, a.grantApproval))
	r.Post("/admin/v1/approvals/{id}/refuse", jsonhttp.Handle(maxAdminBody, a.refuse))
}

type admin struct {
	service *kms.Service
	log     *audit.Log
	routes  chi.Router // itself, for what was approved
	lockout *lockout.Lockout
	oidc    *oidc.Client // nil without a provider
}

// integrity opens every record of the key store anew.
func (a admin) integrity(r *http.Request, _ jsonhttp.None) (v1.Integrity, error) {
	records, err := a.service.CheckRecords(r.Context())
	return v1.Integrity{Records: records}, err
}

func (a admin) beginImport(r *http.Request, _ jsonhttp.None) (v1.ImportKey, error) {
	made, err := a.service.BeginImport(r.Context(), actor(r))
	if err != nil {
		return v1.ImportKey{}, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: made.Public})
	return v1.ImportKey{ID: made.ID.String(), PublicKey: string(text), Fingerprint: keyexport.Fingerprint(made.Public), Expires: made.Expires}, nil
}

func (a admin) finishImport(r *http.Request, in v1.FinishImport) (v1.AdminKey, error) {
	n, err := newKey(in.NewKey)
	if err != nil {
		return v1.AdminKey{}, err
	}
	n.Version = in.Version
	var id hsm.ID
	if err := id.UnmarshalText([]byte(chi.URLParam(r, "id"))); err != nil {
		return v1.AdminKey{}, err
	}
	return a.adminKey(a.service.FinishImport(r.Context(), actor(r), n, id, in.Blob))
}

func (a admin) createApp(r *http.Request, in v1.NewApp) (v1.Credentials, error) {
	apps, err := a.service.Apps()
	if err != nil {
		return v1.Credentials{}, err
	}
	var allow policy.Whitelist
	for _, text := range in.AllowIP {
		p, err := policy.ParsePrefix(text)
		if err != nil {
			return v1.Credentials{}, err
		}
		allow = allow.Add(p)
	}
	grants := policy.Grants{}
	for _, rule := range in.Grants {
		g, err := policy.ParseGrants(rule)
		if err != nil {
			return v1.Credentials{}, err
		}
		grants = grants.Add(g)
	}
	valid, err := validity(in.Expires)
	if err != nil {
		return v1.Credentials{}, err
	}
	c, err := apps.Create(r.Context(), in.Name, allow, grants, valid)
	logged(r, "app created", in.Name, err)
	return credentials(c, err)
}

// logged notes a change that was made.
func logged(r *http.Request, what, app string, err error) {
	if err == nil {
		slog.InfoContext(r.Context(), what, "by", actor(r), "app", app)
	}
}

func credentials(c auth.Credentials, err error) (v1.Credentials, error) {
	return v1.Credentials{Name: c.Name, AppKey: c.AppKey, AppSecret: c.AppSecret}, err
}

func (a admin) listApps(*http.Request, jsonhttp.None) (v1.Batch[v1.AdminApp], error) {
	apps, err := a.service.Apps()
	if err != nil {
		return v1.Batch[v1.AdminApp]{}, err
	}
	out := v1.Batch[v1.AdminApp]{Items: []v1.AdminApp{}}
	for _, app := range apps.List() {
		out.Items = append(out.Items, a.adminApp(apps, app))
	}
	return out, nil
}

func (a admin) showApp(r *http.Request, _ jsonhttp.None) (v1.AdminApp, error) {
	app, fresh, err := a.service.ReadApp(r.Context(), chi.URLParam(r, "app"))
	if err != nil {
		return v1.AdminApp{}, err
	}
	apps, err := a.service.Apps()
	if err != nil {
		return v1.AdminApp{}, err
	}
	out := a.adminApp(apps, app)
	out.Stale = !fresh
	return out, nil
}

func (a admin) changeApp(r *http.Request, in v1.ChangeApp) (v1.AdminApp, error) {
	apps, err := a.service.Apps()
	if err != nil {
		return v1.AdminApp{}, err
	}
	app, err := apps.Change(r.Context(), chi.URLParam(r, "app"), func(app *auth.App) error { return change(apps, app, in) })
	logged(r, "app changed", chi.URLParam(r, "app"), err)
	if err != nil {
		return v1.AdminApp{}, err
	}
	return a.adminApp(apps, app), nil
}

func change(apps *auth.Apps, app *auth.App, in v1.ChangeApp) error {
	if in.AllowIP != "" {
		p, err := policy.ParsePrefix(in.AllowIP)
		if err != nil {
			return err
		}
		app.Whitelist = app.Whitelist.Add(p)
	}
	if in.DenyIP != "" {
		p, err := policy.ParsePrefix(in.DenyIP)
		if err != nil {
			return err
		}
		list, found := app.Whitelist.Remove(p)
		if !found {
			return fault.New(fault.NotFound, "%s is not on the whitelist of %q; trikey app show %s lists what is", p, app.Name, app.Name)
		}
		app.Whitelist = list
	}
	if in.Grant != "" {
		g, err := policy.ParseGrants(in.Grant)
		if err == nil {
			err = apps.Grantable(app.Name, g)
		}
		if err != nil {
			return err
		}
		app.Grants = app.Grants.Add(g)
	}
	if in.Revoke != "" {
		g, err := policy.ParseGrants(in.Revoke)
		if err != nil {
			return err
		}
		app.Grants = app.Grants.Remove(g)
	}
	if in.Disabled != nil {
		app.Disabled = *in.Disabled
	}
	return changeLimits(app, in)
}
