package api

import (
	"time"

	v1 "github.com/trikey/trikey/api/v1"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/policy"
	"github.com/trikey/trikey/kms/token"
)

// userToken makes a capability for one of the app's users. One that was asked for with a
// token is no wider than that, and does not outlive it: who has taken an app's token has not
// taken a day.
func (s *server) userToken(r *request) error {
	var in v1.UserTokenRequest
	if err := r.decode(&in); err != nil {
		return err
	}
	ask := token.Request{Class: token.User, Subject: in.User, ClientID: r.caller.AppKey, Conversations: in.Conversations}
	for _, name := range in.Operations {
		ops, err := policy.ParseOp(name)
		if err != nil {
			return err
		}
		ask.Operations = append(ask.Operations, ops...)
	}
	if t := r.caller.Token; t != nil {
		ask.Until = time.Unix(t.Expires, 0)
	}
	for _, op := range ask.Operations {
		if t := r.caller.Token; t != nil && !t.PermitsAll(op) {
			return fault.New(fault.Forbidden, "operations: the token that asks is not for %s itself", op)
		}
	}
	var err error
	if in.TTL != "" {
		if ask.TTL, err = time.ParseDuration(in.TTL); err != nil || ask.TTL <= 0 {
			return fault.New(fault.BadRequest, "ttl: %.32q is not a time like 90m or 24h", in.TTL)
		}
	}
	if in.Keys != "" {
		if ask.Keys, err = policy.ParseRanges(in.Keys); err != nil {
			return err
		}
	}
	m, err := s.mint(r, ask)
	if err != nil {
		return err
	}
	return r.answer(v1.UserToken{Token: m.Token, ID: m.ID, Expires: time.Unix(m.Expires, 0).UTC()})
}
