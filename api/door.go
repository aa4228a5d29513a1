package api

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/audit"
	"github.com/trikey/trikey/kms/lockout"
	"github.com/trikey/trikey/kms/oidc"
	"github.com/trikey/trikey/kms/people"
)

// Door is a way in to the admin API: the socket of this host, whose user the kernel knows,
// or the listener, where people log in.
type Door struct {
	Remote      bool          // the listener
	Local       LocalUse      // of the socket
	Approval    ApprovalMode  // when another person must approve
	RequestLife time.Duration // of what waits for approval; approval.MaxLife when zero

	Lockout *lockout.Lockout // of apps, to be unlocked
	OIDC    *oidc.Client     // that people may log in by; nil without
}

// LocalUse is what the socket serves as soon as somebody has enrolled as admin, and from then
// on: an officer who disables the last admin does not open it again. Before, it serves
// everything.
type LocalUse string

// The uses.
const (
	LocalFull     LocalUse = "full"     // everything
	LocalRecovery LocalUse = "recovery" // reading, and people
	LocalNone     LocalUse = "none"
)

// ApprovalMode says when another person must approve what is dangerous.
type ApprovalMode string

// The modes.
const (
	ApprovalOff    ApprovalMode = "off"
	ApprovalPeople ApprovalMode = "people" // over the listener, as soon as two people could approve
	ApprovalAlways ApprovalMode = "always" // and over the socket
)

type door struct {
	Door
	service *kms.Service
	log     *audit.Log
}

type sessionKey struct{}

// sessionOf returns the session of who makes a request; there is none on the socket.
func sessionOf(ctx context.Context) (people.Session, bool) {
	s, ok := ctx.Value(sessionKey{}).(people.Session)
	return s, ok
}

// session returns the session of a request's bearer token.
func (d *door) session(r *http.Request) (people.Session, error) {
	all := r.Header.Values("Authorization")
	if len(all) != 1 {
		return people.Session{}, fault.New(fault.Unauthorized, "no session; log in (trikey login)")
	}
	scheme, token, _ := strings.Cut(all[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return people.Session{}, fault.New(fault.Unauthorized, "the admin API takes sessions of people (trikey login), not the credentials of apps")
	}
	registry, err := d.service.People()
	if err != nil {
		return people.Session{}, err
	}
	return registry.Session(r.Context(), token)
}

// authorise lets through who may use the route that is called.
func (d *door) authorise(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if grantOf(r.Context()) != nil { // the grant was authorised
			next.ServeHTTP(w, r)
			return
		}
		route := r.Method + " " + routeOf(r)
		ctx, err := d.admit(r, route)
		if err == nil {
			next.ServeHTTP(w, r.WithContext(ctx))
			return
		}
		if fault.CodeOf(err) == fault.Unauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="trikey"`)
		}
		if failed := d.recordFailure(ctx, route, r, err); failed != nil {
			err = failed
		}
		jsonhttp.Error(w, r, err)
	})
}

// admit reports why a route may not be used; the context knows who has called.
func (d *door) admit(r *http.Request, route string) (context.Context, error) {
	ctx := r.Context()
	rule, ruled := accesses[route]
	if !d.Remote {
		return ctx, d.admitLocal(ctx, route, rule)
	}
	if rule.open {
		return ctx, nil
	}
	s, err := d.session(r)
	if err != nil {
		return ctx, err
	}
	ctx = context.WithValue(audit.WithActor(ctx, s.Actor()), sessionKey{}, s)
	switch {
	case strings.HasSuffix(route, " "+noRoute):
		return ctx, nil // the router says so
	case !ruled || !slices.Contains(rule.roles, s.Role):
		return ctx, fault.New(fault.Forbidden, "this is not for the role %s", s.Role)
	case rule.stepUp && !s.Fresh():
		return ctx, errStepUp
	}
	return ctx, nil
}

var errStepUp = fault.New(fault.StepUpRequired, "this needs a code of the last %s; give one (trikey login --step-up)", people.StepUpLife)

// admitLocal reports why the socket does not serve a route.
func (d *door) admitLocal(ctx context.Context, route string, rule access) error {
	if rule.person {
		return fault.New(fault.Forbidden, "this is for a person who is logged in, at the admin listener (trikey login)")
	}
	if d.Local == LocalFull || d.Local == "" {
		return nil
	}
	if d.Local == LocalRecovery && (strings.HasPrefix(route, "GET ") || strings.Contains(route, "/people")) {
		return nil
	}
	registry, err := d.service.People()
	if err != nil {
		return err
	}
	all, err := registry.List(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, people.Person.HasBeenAdmin) {
		return fault.New(fault.Forbidden, "the socket does not serve this (admin.local: %s); log in as a person (trikey login)", d.Local)
	}
	return nil
}

// recordFailure records that somebody was not let in. That the machine is sealed is nobody's
// failure.
func (d *door) recordFailure(ctx context.Context, route string, r *http.Request, err error) error {
	code := fault.CodeOf(err)
	if code == fault.Sealed || code == fault.Unavailable {
		return nil
	}
	slog.WarnContext(ctx, "an admin call was refused", "code", string(code), "address", addressOf(r), "route", route)
	e := audit.Event{Op: route, Address: addressOf(r), Outcome: string(code)}
	if s, ok := sessionOf(ctx); ok {
		e.Actor = s.Actor()
	} else if !d.Remote {
		e.Actor = audit.ActorOf(ctx)
	}
	return d.log.Failure(e)
}
