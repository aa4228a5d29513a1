package auth

import (
	"net/netip"

	"github.com/trikey/trikey/internal/fault"
)

// Again looks anew at a caller that was recognised before, and goes on calling from the
// same address: its app may have been disabled since, lost that address, or been granted
// other things.
func (a *Apps) Again(c *Caller, from netip.Addr) (*Caller, error) {
	now := *c
	var err error
	if now.App, err = a.Find(c.Name); err != nil || now.Disabled {
		return nil, fault.New(fault.Unauthorized, "the app %s was disabled while the stream was under way", c.Name)
	}
	if !now.Whitelist.Allows(from) {
		return &now, notAllowed(from)
	}
	return &now, nil
}

func notAllowed(from netip.Addr) error {
	return fault.New(fault.IPNotAllowed, "the address %s is not on the app's whitelist", from.Unmap())
}
