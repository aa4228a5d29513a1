package api

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/people"
)

// access is who may use a route of the admin API over the listener.
type access struct {
	roles  []people.Role
	open   bool // to who has no session yet
	person bool // not on the socket
	stepUp bool // a code must have been given a short time ago

	// everywhere has the socket ask for approval too, as soon as there is a person who could
	// give it: unless admin.approval is off.
	everywhere bool

	streams bool // it records itself: what it takes or answers is not kept back for that

	// approve says in words what a request would do that another person must approve, ""
	// where none must.
	approve func(a admin, r *http.Request, body []byte) (what string, err error)
}

var (
	admins    = []people.Role{people.Admin}
	officers  = []people.Role{people.Officer}
	approvers = []people.Role{people.Admin, people.Officer}
	everybody = []people.Role{people.Admin, people.Officer, people.Auditor}
)

// accesses are the rules, by method and route. What has none is refused over the listener,
// and fails TestPermissions.
var accesses = map[string]access{
	"GET /admin/v1/keys":                         {roles: everybody},
	"GET /admin/v1/keys/{key}":                   {roles: everybody},
	"GET /admin/v1/keys/{key}/certificates":      {roles: everybody},
	"GET /admin/v1/key-ranges":                   {roles: everybody},
	"GET /admin/v1/apps":                         {roles: everybody},
	"GET /admin/v1/apps/{app}":                   {roles: everybody},
	"GET /admin/v1/integrity":                    {roles: everybody},
	"POST /admin/v1/keys":                        {roles: admins},
	"PATCH /admin/v1/keys/{key}":                 {roles: admins, approve: approveKeySettings},
	"POST /admin/v1/keys/{key}/rotate":           {roles: admins},
	"POST /admin/v1/keys/{key}/activate":         {roles: admins},
	"POST /admin/v1/keys/{key}/resume":           {roles: admins},
	"POST /admin/v1/keys/{key}/deactivate":       {roles: admins, stepUp: true},
	"POST /admin/v1/keys/{key}/suspend":          {roles: approvers}, // in an emergency by whoever is there
	"POST /admin/v1/keys/{key}/hold":             {roles: approvers},
	"POST /admin/v1/keys/{key}/cancel-destroy":   {roles: approvers},
	"POST /admin/v1/keys/{key}/compromise":       {roles: admins, stepUp: true},
	"POST /admin/v1/keys/{key}/release":          {roles: admins, stepUp: true, approve: approveRelease},
	"POST /admin/v1/keys/{key}/schedule-destroy": {roles: admins, stepUp: true, approve: approveDestroy},
	"POST /admin/v1/keys/{key}/export":           {roles: admins, stepUp: true, approve: approveExport, everywhere: true},
	"POST /admin/v1/key-ranges":                  {roles: admins},
	"POST /admin/v1/key-batches":                 {roles: admins},
	"GET /admin/v1/censuses":                     {roles: everybody},
	"POST /admin/v1/censuses":                    {roles: admins, approve: approveCensus},
	"POST /admin/v1/imports":                     {roles: admins},
	"POST /admin/v1/imports/{id}":                {roles: admins, stepUp: true},
	"POST /admin/v1/apps":                        {roles: admins, stepUp: true, approve: approveNewApp},
	"PATCH /admin/v1/apps/{app}":                 {roles: admins, approve: approveApp},
	"POST /admin/v1/apps/{app}/rotate-secret":    {roles: admins, stepUp: true},

	"POST /admin/v1/apps/{app}/drop-secret":           {roles: admins},
	"POST /admin/v1/apps/{app}/certificates":          {roles: admins, stepUp: true},
	"DELETE /admin/v1/apps/{app}/certificates/{spki}": {roles: admins},

	"POST /admin/v1/apps/{app}/unlock": {roles: approvers},
	"POST /admin/v1/apps/{app}/reopen": {roles: admins, stepUp: true, approve: approveReopen},

	"POST /admin/v1/tokens/inspect":       {roles: everybody},
	"POST /admin/v1/tokens/revoke":        {roles: approvers},
	"POST /admin/v1/tokens/revoke-app":    {roles: approvers},
	"POST /admin/v1/tokens/revoke-user":   {roles: approvers},
	"POST /admin/v1/tokens/revoke-person": {roles: approvers},

	"POST /admin/v1/backup/create": {roles: admins, stepUp: true, streams: true},
	"POST /admin/v1/backup/epochs": {roles: admins, stepUp: true, streams: true},
	"POST /admin/v1/backup/verify": {roles: admins, streams: true},
	"POST /admin/v1/backup/drill":  {roles: admins, streams: true},

	"POST /admin/v1/login":             {open: true, person: true},
	"POST /admin/v1/login/oidc/begin":  {open: true, person: true},
	"POST /admin/v1/login/oidc/finish": {open: true, person: true},
	"POST /admin/v1/enrol":             {open: true, person: true},
	"GET /admin/v1/session":            {roles: everybody, person: true},
	"POST /admin/v1/session/logout":    {roles: everybody, person: true},
	"POST /admin/v1/session/step-up":   {roles: everybody, person: true},
	"POST /admin/v1/session/password":  {roles: everybody, person: true},

	"GET /admin/v1/people":                   {roles: everybody},
	"POST /admin/v1/people":                  {roles: officers, stepUp: true, approve: approvePerson},
	"POST /admin/v1/people/{person}/reset":   {roles: officers, stepUp: true, approve: approveReset},
	"POST /admin/v1/people/{person}/disable": {roles: officers, stepUp: true, approve: approveDisable},

	"POST /admin/v1/people/{person}/bind-oidc": {roles: officers, stepUp: true, approve: approveBind},

	"GET /admin/v1/approvals":              {roles: everybody},
	"GET /admin/v1/approvals/{id}":         {roles: everybody},
	"POST /admin/v1/approvals/{id}/grant":  {roles: approvers, person: true, stepUp: true},
	"POST /admin/v1/approvals/{id}/refuse": {roles: approvers},
}

func approveDestroy(a admin, r *http.Request, body []byte) (string, error) {
	k, in, err := orderOf(a, r, body)
	if err != nil {
		return "", err
	}
	which := "with all its versions"
	if in.Version != 0 {
		which = fmt.Sprintf("version %d", in.Version)
	}
	if in.Days == 0 {
		in.Days = kms.DefaultDestroyDays
	}
	used := ""
	if in.EvenIfUsed != "" {
		used = fmt.Sprintf(", EVEN IF A CENSUS FINDS IT IN USE (%s)", in.EvenIfUsed)
	}
	return fmt.Sprintf("destroy key %d %q, %s%s, %d days after the approval; what it has sealed is lost then", k.Index, k.Name, which, used, in.Days), nil
}

// approveCensus asks for the removal of a census, which keeps keys from being destroyed.
func approveCensus(_ admin, _ *http.Request, body []byte) (string, error) {
	var in kms.CensusOrder
	if err := jsonhttp.Unmarshal(body, &in); err != nil || !in.Remove {
		return "", err
	}
	return fmt.Sprintf("forget the census %q; it keeps the keys it has counted from being destroyed no longer", in.Name), nil
}

// orderOf is the key and the body of an order about a key's life.
func orderOf(a admin, r *http.Request, body []byte) (k *kms.Key, in v1.KeyOrder, err error) {
	if len(body) > 0 {
		if err := jsonhttp.Unmarshal(body, &in); err != nil {
			return nil, in, err
		}
	}
	k, err = a.find(r)
	return k, in, err
}

func approveRelease(a admin, r *http.Request, _ []byte) (string, error) {
	k, err := a.find(r)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("release the legal hold of key %d %q; versions whose time is over are destroyed then", k.Index, k.Name), nil
}

// approveKeySettings asks for retention, which destroys, and for what has a key serve more
// than it does: other apps than its owner, or contexts that it refuses.
func approveKeySettings(a admin, r *http.Request, body []byte) (string, error) {
	var in v1.KeySettings
	if err := jsonhttp.Unmarshal(body, &in); err != nil {
		return "", err
	}
	k, err := a.find(r)
	if err != nil {
		return "", err
	}
	var now kms.Settings
	if k.Settings != nil {
		now = *k.Settings
	}
	next := now
	if err := changeSettings(&next, in); err != nil {
		return "", err
	}
	var what []string
	if in.Retain != nil && next.Retain != 0 {
		what = append(what, fmt.Sprintf("destroy each version of key %d %q %s after it was replaced, those of before too", k.Index, k.Name, *in.Retain))
	}
	if now.Owner != "" && next.Owner != now.Owner {
		to := "any app that is granted it"
		if next.Owner != "" {
			to = fmt.Sprintf("the app %q", next.Owner)
		}
		what = append(what, fmt.Sprintf("let %s use key %d %q, which is the app %q's alone", to, k.Index, k.Name, now.Owner))
	}
	if before, after := now.Context.String(), next.Context.String(); before != "" && after != before || now.Context.Strict && !next.Context.Strict {
		what = append(what, fmt.Sprintf("have key %d %q seal with the context %q (strict: %t), no longer %q (%t)",
			k.Index, k.Name, after, next.Context.Strict, before, now.Context.Strict))
	}
	return strings.Join(what, ", and "), nil
}

// approveNewApp refuses: the answer to who approves would have the app's secret.
func approveNewApp(_ admin, _ *http.Request, body []byte) (string, error) {
	var in v1.NewApp
	if err := jsonhttp.Unmarshal(body, &in); err != nil {
		return "", err
	}
	if len(in.AllowIP) > 0 || len(in.Grants) > 0 {
		return "", fault.New(fault.ApprovalRequired, "addresses and grants need another person's approval, and an app's secret is for you alone: "+
			"create the app without them, then ask for each (trikey app allow-ip, trikey app grant)")
	}
	return "", nil
}

// approveApp asks for what lets an app do more.
func approveApp(a admin, r *http.Request, body []byte) (string, error) {
	var in v1.ChangeApp
	if err := jsonhttp.Unmarshal(body, &in); err != nil {
		return "", err
	}
	app, err := a.showApp(r, jsonhttp.None{})
	if err != nil {
		return "", err
	}
	var more []string
	if in.AllowIP != "" {
		where := in.AllowIP
		if strings.HasSuffix(where, "/0") {
			where += " (EVERY ADDRESS)"
		}
		more = append(more, "call from "+where)
	}
	if in.Grant != "" {
		more = append(more, "do "+in.Grant)
	}
	if in.Disabled != nil && !*in.Disabled {
		more = append(more, "call again")
	}
	if in.Limit != "" {
		more = append(more, "call at the rate "+in.Limit)
	}
	if in.Budget != "" {
		more = append(more, "decrypt within the budget "+in.Budget)
	}
	if len(more) == 0 {
		return "", nil
	}
	return fmt.Sprintf("let app %q %s", app.Name, strings.Join(more, ", and ")), nil
}

func approveReopen(a admin, r *http.Request, body []byte) (string, error) {
	var in v1.ReopenApp
	if err := jsonhttp.Unmarshal(body, &in); err != nil {
		return "", err
	}
	app, err := a.showApp(r, jsonhttp.None{})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("let app %q decrypt again, whose budget was spent: %s", app.Name, in.Why), nil
}

func approvePerson(_ admin, _ *http.Request, body []byte) (string, error) {
	var in v1.NewPerson
	if err := jsonhttp.Unmarshal(body, &in); err != nil {
		return "", err
	}
	role, err := people.ParseRole(in.Role)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("invite %q as %s", in.Name, role), nil
}

func approveReset(a admin, r *http.Request, _ []byte) (string, error) {
	p, err := a.person(r)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("have %q, %s, enrol anew: the password and codes of now end", p.Name, p.Role), nil
}

// approveDisable lets one person disable others, but not so many that nobody is left to
// approve what is asked next.
func approveDisable(a admin, r *http.Request, _ []byte) (string, error) {
	p, err := a.person(r)
	if err != nil {
		return "", err
	}
	registry, err := a.service.People()
	if err != nil {
		return "", err
	}
	left, err := registry.Approvers(r.Context(), p.Name)
	if err != nil || left >= 2 {
		return "", err
	}
	return fmt.Sprintf("disable %q, %s, for good; then fewer than two people can approve", p.Name, p.Role), nil
}

// person is the one that the request's path names.
func (a admin) person(r *http.Request) (people.Person, error) {
	registry, err := a.service.People()
	if err != nil {
		return people.Person{}, err
	}
	return registry.Find(r.Context(), chi.URLParam(r, "person"))
}
