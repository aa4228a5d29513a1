package api

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json/jsontext"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/jsonhttp"
	"github.com/trikey/trikey/kms/approval"
	"github.com/trikey/trikey/kms/audit"
	"github.com/trikey/trikey/kms/people"
)

type grantKey struct{}

// grant is the approval by which a request is made.
type grant struct {
	id, approver string
}

func grantOf(ctx context.Context) *grant {
	g, _ := ctx.Value(grantKey{}).(*grant)
	return g
}

// outcomeWaits is the outcome, in the audit log, of what waits for approval.
const outcomeWaits = "waits_for_approval"

// gate keeps what another person must approve, until they do.
func (d *door) gate(a admin) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked, err := d.ask(w, r, a)
			switch {
			case err != nil:
				jsonhttp.Error(w, r, err)
			case asked == nil:
				next.ServeHTTP(w, r)
			default:
				w.Header().Set("Location", "/admin/v1/approvals/"+asked.ID)
				jsonhttp.Write(w, http.StatusAccepted, approvalAnswer(*asked))
			}
		})
	}
}

// ask stores a request that needs approval; it returns nil for one that needs none. What
// would need it if there were somebody to approve needs a code of a short time ago.
func (d *door) ask(w http.ResponseWriter, r *http.Request, a admin) (*approval.Request, error) {
	rule := accesses[r.Method+" "+routeOf(r)]
	if rule.approve == nil || grantOf(r.Context()) != nil {
		return nil, nil
	}
	needed, err := d.approves(r)
	if err != nil || !needed && !d.Remote {
		return nil, err
	}
	buf := jsonhttp.Buffer()
	defer jsonhttp.Release(buf)
	if err := jsonhttp.ReadBody(w, r, maxAdminBody, buf); err != nil {
		return nil, err
	}
	body := bytes.Clone(buf.Bytes())
	r.Body = io.NopCloser(bytes.NewReader(body))
	what, err := rule.approve(a, matched(r), body)
	s, person := sessionOf(r.Context())
	switch {
	case what == "" && !needed:
		return nil, nil // what is wrong with it the handler says
	case what == "":
		return nil, err
	case person && !s.Fresh():
		return nil, errStepUp
	case !needed:
		return nil, nil
	}
	desk, err := a.service.Approvals()
	if err != nil {
		return nil, err
	}
	asked, err := desk.Ask(r.Context(), approval.Request{
		What: what, Method: r.Method, Path: r.URL.EscapedPath(), Body: body, By: string(actor(r)), Person: s.Name,
	}, d.RequestLife)
	return &asked, err
}

// approves reports whether another person must approve what is dangerous.
func (d *door) approves(r *http.Request) (bool, error) {
	switch {
	case d.Approval == ApprovalOff || d.Approval == "":
		return false, nil
	case !d.Remote && !accesses[r.Method+" "+routeOf(r)].everywhere && (d.Approval != ApprovalAlways || strings.Contains(routeOf(r), "/people")):
		return false, nil // of people the socket does only what nobody else can
	case d.Approval == ApprovalAlways:
		return true, nil
	}
	registry, err := d.service.People()
	if err != nil {
		return false, err
	}
	n, err := registry.Approvers(r.Context(), "")
	if !d.Remote {
		n++ // whoever asks at the socket is none of them
	}
	return n >= 2, err
}

// matched is a request with its route, which the router has not set before its middleware
// runs.
func matched(r *http.Request) *http.Request {
	route := chi.NewRouteContext()
	if c := chi.RouteContext(r.Context()); c != nil && c.Routes != nil {
		c.Routes.Match(route, r.Method, pathOf(r))
	}
	return r.WithContext(context.WithValue(r.Context(), chi.RouteCtxKey, route))
}

func approvalAnswer(r approval.Request) v1.Approval {
	return v1.Approval{
		ID: r.ID, What: r.What, Method: r.Method, Path: r.Path, Body: string(r.Body), Digest: r.Digest(), By: r.By, State: string(r.State),
		Created: r.Created, Expires: r.Expires, Decided: r.Decided, Decider: r.Decider, Why: r.Why, Outcome: r.Outcome,
	}
}

func (a admin) listApprovals(r *http.Request, _ jsonhttp.None) (v1.Batch[v1.Approval], error) {
	out := v1.Batch[v1.Approval]{Items: []v1.Approval{}}
	desk, err := a.service.Approvals()
	if err != nil {
		return out, err
	}
	all, err := desk.List(r.Context())
	for _, asked := range all {
		out.Items = append(out.Items, approvalAnswer(asked))
	}
	return out, err
}

func (a admin) showApproval(r *http.Request, _ jsonhttp.None) (v1.Approval, error) {
	desk, err := a.service.Approvals()
	if err != nil {
		return v1.Approval{}, err
	}
	asked, err := desk.Find(r.Context(), chi.URLParam(r, "id"))
	return approvalAnswer(asked), err
}

func (a admin) refuse(r *http.Request, in v1.Refusal) (v1.Approval, error) {
	desk, err := a.service.Approvals()
	if err != nil {
		return v1.Approval{}, err
	}
	refused, err := desk.Refuse(r.Context(), chi.URLParam(r, "id"), clip(in.Why), string(actor(r)))
	return approvalAnswer(refused), err
}

// grantApproval does what was asked for, once, and answers with how that ended.
func (a admin) grantApproval(r *http.Request, in v1.Grant) (v1.Approval, error) {
	s, registry, err := a.own(r)
	if err != nil {
		return v1.Approval{}, err
	}
	desk, err := a.service.Approvals()
	if err != nil {
		return v1.Approval{}, err
	}
	asked, err := desk.Find(r.Context(), chi.URLParam(r, "id"))
	if err == nil && asked.Person != "" {
		err = a.stillMay(r.Context(), registry, asked)
	}
	if err == nil {
		asked, err = desk.Grant(r.Context(), asked.ID, in.Digest, s.Actor(), s.Name)
	}
	if err != nil {
		return v1.Approval{}, err
	}
	// From here on it is done, also when the approver's connection breaks.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Minute)
	defer cancel()
	done := a.execute(ctx, r.RemoteAddr, asked, &grant{id: asked.ID, approver: s.Actor()})
	defer jsonhttp.Release(done.body)
	if asked, err = desk.End(ctx, asked.ID, done.outcome()); err != nil {
		return v1.Approval{}, err
	}
	out := approvalAnswer(asked)
	if done.body.Len() > 0 {
		out.Result = jsontext.Value(bytes.Clone(done.body.Bytes()))
	}
	return out, nil
}

// stillMay reports why the person who has asked may no longer.
func (a admin) stillMay(ctx context.Context, registry *people.Registry, asked approval.Request) error {
	p, err := registry.Find(ctx, asked.Person)
	if err != nil {
		return err
	}
	route := chi.NewRouteContext()
	known := a.routes.Match(route, asked.Method, asked.Path)
	if !known || p.State != people.Active || !slices.Contains(accesses[asked.Method+" "+route.RoutePattern()].roles, p.Role) {
		return fault.New(fault.Forbidden, "%s, who has asked for this, may no longer; refuse it (trikey approve refuse %s)", asked.By, asked.ID)
	}
	return nil
}

// execute makes a request that was approved, as who has asked for it.
func (a admin) execute(ctx context.Context, address string, asked approval.Request, by *grant) *answer {
	ctx = context.WithValue(audit.WithActor(ctx, asked.By), grantKey{}, by)
	ctx = context.WithValue(ctx, chi.RouteCtxKey, nil) // a request of its own, not a part of this one
	out := &answer{ResponseWriter: nowhere{}, body: jsonhttp.Buffer(), status: http.StatusOK}
	r, err := http.NewRequestWithContext(ctx, asked.Method, "http://admin"+asked.Path, bytes.NewReader(asked.Body))
	if err != nil {
		jsonhttp.Error(out, &http.Request{Method: asked.Method}, err)
		return out
	}
	r.RemoteAddr = address
	a.routes.ServeHTTP(out, r)
	return out
}

// nowhere takes the header of an answer that goes into another one.
type nowhere struct{}

// Header is that of http.ResponseWriter.
func (nowhere) Header() http.Header { return http.Header{} }

// Write is that of http.ResponseWriter.
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }

// WriteHeader is that of http.ResponseWriter.
func (nowhere) WriteHeader(int) {}
