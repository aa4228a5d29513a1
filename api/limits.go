package api

import (
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/budget"
	"github.com/trikey/trikey/kms/limit"
)

// changeLimits changes what an app is held to.
func changeLimits(app *auth.App, in v1.ChangeApp) error {
	if in.Limit != "" {
		if in.Limit == v1.LimitDefault {
			app.Limit = nil
		} else if r, err := limit.ParseRate(in.Limit); err == nil {
			app.Limit = &r
		} else {
			return err
		}
	}
	if in.Budget != "" {
		b, err := budget.Parse(in.Budget)
		if err != nil {
			return err
		}
		if app.Budget = &b; in.Budget == budget.None {
			app.Budget = nil
		}
	}
	return nil
}

// held adds to an app what it is held to, and how far it is.
func (a admin) held(out v1.AdminApp, app *auth.App) v1.AdminApp {
	if app.Limit != nil {
		out.Limit = app.Limit.String()
	}
	if app.Budget != nil {
		out.Budget = app.Budget.String()
		spent := a.service.Spent(app.Name)
		out.Spent = &v1.Spent{Items: spent.Items, Conversations: spent.Conversations, Old: spent.Old}
	}
	if s, ok := a.service.Suspended(app.Name); ok {
		out.Suspended = &v1.Suspended{Why: string(s.Why), Time: s.Time}
	}
	return out
}

// reopenApp lets an app decrypt again whose budget was spent. Whoever has changes approved
// by a second person has this route approved.
func (a admin) reopenApp(r *http.Request, in v1.ReopenApp) (v1.AdminApp, error) {
	if strings.TrimSpace(in.Why) == "" {
		return v1.AdminApp{}, fault.New(fault.BadRequest, "why: say why the app may decrypt again; it is recorded in the audit log")
	}
	if err := a.service.Reopen(r.Context(), actor(r), chi.URLParam(r, "app")); err != nil {
		return v1.AdminApp{}, err
	}
	return a.showApp(r, jsonhttp.None{})
}

// unlockApp forgets the failed authentications of an app on this node.
func (a admin) unlockApp(r *http.Request, _ jsonhttp.None) (v1.AdminApp, error) {
	apps, err := a.service.Apps()
	if err != nil {
		return v1.AdminApp{}, err
	}
	app, err := apps.Find(chi.URLParam(r, "app"))
	if err != nil {
		return v1.AdminApp{}, err
	}
	a.lockout.Unlock(app.AppKey)
	logged(r, "app unlocked", app.Name, nil)
	return a.adminApp(apps, app), nil
}
