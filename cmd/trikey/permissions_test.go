package main_test

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"

	"github.com/trikey/trikey/api"
)

// permissions say who may use each route of the admin API over the listener: a for admins,
// o for officers, u for auditors, - for who is not logged in. They are written down here a
// second time on purpose: a route that is new fails until somebody has decided.
var permissions = map[string]string{
	"DELETE /admin/v1/apps/{app}/certificates/{spki}": "a",
	"POST /admin/v1/apps/{app}/certificates":          "a",
	"POST /admin/v1/apps/{app}/drop-secret":           "a",
	"POST /admin/v1/apps/{app}/unlock":                "ao",
	"POST /admin/v1/key-batches":                      "a",
	"GET /admin/v1/censuses":                          "aou",
	"POST /admin/v1/censuses":                         "a",
	"POST /admin/v1/apps/{app}/reopen":                "a",
	"GET /admin/v1/apps":                              "aou",
	"GET /admin/v1/apps/{app}":                        "aou",
	"GET /admin/v1/approvals":                         "aou",
	"GET /admin/v1/approvals/{id}":                    "aou",
	"GET /admin/v1/integrity":                         "aou",
	"GET /admin/v1/key-ranges":                        "aou",
	"GET /admin/v1/keys":                              "aou",
	"GET /admin/v1/keys/{key}":                        "aou",
	"GET /admin/v1/keys/{key}/certificates":           "aou",
	"GET /admin/v1/people":                            "aou",
	"GET /admin/v1/session":                           "aou",
	"PATCH /admin/v1/apps/{app}":                      "a",
	"PATCH /admin/v1/keys/{key}":                      "a",
	"POST /admin/v1/approvals/{id}/grant":             "ao",
	"POST /admin/v1/approvals/{id}/refuse":            "ao",
	"POST /admin/v1/apps":                             "a",
	"POST /admin/v1/apps/{app}/rotate-secret":         "a",
	"POST /admin/v1/backup/create":                    "a",
	"POST /admin/v1/backup/drill":                     "a",
	"POST /admin/v1/backup/epochs":                    "a",
	"POST /admin/v1/backup/verify":                    "a",
	"POST /admin/v1/enrol":                            "aou-",
	"POST /admin/v1/imports":                          "a",
	"POST /admin/v1/imports/{id}":                     "a",
	"POST /admin/v1/key-ranges":                       "a",
	"POST /admin/v1/keys":                             "a",
	"POST /admin/v1/keys/{key}/activate":              "a",
	"POST /admin/v1/keys/{key}/cancel-destroy":        "ao",
	"POST /admin/v1/keys/{key}/compromise":            "a",
	"POST /admin/v1/keys/{key}/deactivate":            "a",
	"POST /admin/v1/keys/{key}/export":                "a",
	"POST /admin/v1/keys/{key}/hold":                  "ao",
	"POST /admin/v1/keys/{key}/release":               "a",
	"POST /admin/v1/keys/{key}/resume":                "a",
	"POST /admin/v1/keys/{key}/rotate":                "a",
	"POST /admin/v1/keys/{key}/schedule-destroy":      "a",
	"POST /admin/v1/keys/{key}/suspend":               "ao",
	"POST /admin/v1/login":                            "aou-",
	"POST /admin/v1/login/oidc/begin":                 "aou-",
	"POST /admin/v1/login/oidc/finish":                "aou-",
	"POST /admin/v1/people/{person}/bind-oidc":        "o",
	"POST /admin/v1/people":                           "o",
	"POST /admin/v1/people/{person}/disable":          "o",
	"POST /admin/v1/people/{person}/reset":            "o",
	"POST /admin/v1/session/logout":                   "aou",
	"POST /admin/v1/session/password":                 "aou",
	"POST /admin/v1/session/step-up":                  "aou",
	"POST /admin/v1/tokens/inspect":                   "aou",
	"POST /admin/v1/tokens/revoke":                    "ao",
	"POST /admin/v1/tokens/revoke-app":                "ao",
	"POST /admin/v1/tokens/revoke-person":             "ao",
	"POST /admin/v1/tokens/revoke-user":               "ao",
}

var parameter = regexp.MustCompile(`\{[^}]+\}`)

// routes are those of a router, with what the parameters stand for named nothing.
func routes(t *testing.T, r chi.Routes) (all []string) {
	t.Helper()
	if err := chi.Walk(r, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		all = append(all, method+" "+route)
		return nil
	}); err != nil || len(all) == 0 {
		t.Fatalf("%d routes: %v", len(all), err)
	}
	slices.Sort(all)
	return all
}

// TestPermissions calls every endpoint as every class of caller.
func TestPermissions(t *testing.T) {
	t.Parallel()
	o := newOffice(t, nil)
	o.createApp("im", "127.0.0.1/32", "keys=*;ops=encrypt,decrypt")
	tokens := map[string]string{"-": "", "app": "", "x": "tks_" + strings.Repeat("A", 43)}
	for name, role := range map[string]string{"a": "admin", "o": "officer", "u": "auditor"} {
		tokens[name] = o.first(role+"1", role).token()
	}
	all := routes(t, api.NewAdmin(nil, nil, api.Door{}))
	for route := range permissions {
		if !slices.Contains(all, route) {
			t.Errorf("%s is no route", route)
		}
	}
	for _, route := range all {
		may, known := permissions[route]
		if !known {
			t.Errorf("%s: nobody has decided who may use it (here and in api/access.go)", route)
			continue
		}
		method, path, _ := strings.Cut(route, " ")
		path = parameter.ReplaceAllString(path, "nothing")
		for class, token := range tokens {
			// A body that no route takes: who is let in is told so, and nothing happens.
			var body any
			if method != http.MethodGet {
				body = object{"no such field": 1}
			}
			a := o.admin(token, method, path, body)
			if class == "app" {
				req, err := http.NewRequestWithContext(t.Context(), method, o.addr+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.SetBasicAuth(o.key, o.secret)
				other := *o.site
				other.client = o.http
				a = other.send(req)
			}
			open := strings.Contains(may, "-")
			switch {
			case open || strings.Contains(may, class):
				if a.status == 401 || a.status == 403 {
					t.Errorf("%s as %q: %d %s", route, class, a.status, a.raw)
				}
			case len(class) == 1 && strings.Contains("aou", class):
				o.wantError(a, 403, "forbidden")
			default:
				o.wantError(a, 401, "unauthorized")
			}
		}
	}
	// A path is not one route for the rules and another for the router.
	o.wantError(o.admin(tokens["u"], "POST", "/admin/v1/keys/a%2Fb/schedule-destroy", nil), 403, "forbidden")
	// And the data plane takes no person's session.
	for _, route := range routes(t, api.New(api.Config{}).(chi.Routes)) {
		method, path, _ := strings.Cut(route, " ")
		if strings.HasPrefix(path, "/.well-known/") {
			continue // anybody may read it
		}
		for class, token := range tokens {
			if token == "" {
				continue
			}
			req, err := http.NewRequestWithContext(t.Context(), method, o.api+parameter.ReplaceAllString(path, "7"), nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+token)
			if a := o.send(req); a.status != 401 {
				t.Errorf("%s with the session of %q: %d %s", route, class, a.status, a.raw)
			}
		}
	}
}
