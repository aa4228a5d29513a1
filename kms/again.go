package kms

import (
	"net/netip"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/auth"
)

// Again looks anew at a caller that was recognised before, and goes on calling from an
// address: its token may have ended since, its app been disabled, lost the address, or been
// granted other things. A caller that is known is returned beside the error.
func (s *Service) Again(caller *auth.Caller, from netip.Addr) (*auth.Caller, error) {
	now, err := s.standing(caller)
	if err == nil && !now.Whitelist.Allows(from) {
		err = fault.New(fault.IPNotAllowed, "the address %s is not on the app's whitelist", from.Unmap())
	}
	return now, err
}

// standing returns a caller with its app as that is by now.
func (s *Service) standing(caller *auth.Caller) (*auth.Caller, error) {
	apps, err := s.Apps()
	if err != nil {
		return nil, err
	}
	now := *caller
	if now.Token != nil {
		tokens, err := s.Tokens()
		if err == nil {
			err = tokens.Alive(now.Token)
		}
		if err != nil {
			return caller, err
		}
	}
	if now.App, err = apps.Find(caller.Name); err != nil || now.Disabled {
		return caller, fault.New(fault.Unauthorized, "the app %s was disabled while the stream was under way", caller.Name)
	}
	return &now, nil
}
