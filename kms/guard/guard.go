// Package guard stands before the data plane, whatever the way in: it holds callers to
// the rate of their address, keeps out who is locked out, and counts what failed. What a
// caller asks for after that is counted where it is known, in kms.Service.
package guard

import (
	"fmt"
	"net/netip"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/kms/alert"
	"github.com/trikey/trikey/kms/auth"
	"github.com/trikey/trikey/kms/limit"
	"github.com/trikey/trikey/kms/lockout"
)

// Guard has what it takes; what is nil is not done. A nil Guard lets everybody on.
type Guard struct {
	Limits  *limit.Limits
	Lockout *lockout.Lockout
	Alerts  *alert.Alerts
}

// malformed is the AppKey under which failures are counted that named none that could
// be one.
const malformed = "?"

// Admit lets identify find out who calls, unless the caller is refused before. claimed is
// the AppKey that the request names, "" when it names none: who is locked out learns
// nothing of whether the rest was right.
func (g *Guard) Admit(claimed string, from netip.Addr, identify func() (*auth.Caller, error)) (*auth.Caller, error) {
	if g == nil {
		return identify()
	}
	if err := g.Limits.Arrive(from); err != nil {
		return nil, err
	}
	if claimed != "" && !auth.IsAppKey(claimed) {
		claimed = malformed
	}
	if err := g.Lockout.Check(claimed, from); err != nil {
		return nil, err
	}
	caller, err := identify()
	switch fault.CodeOf(err) {
	case "":
		g.Lockout.Passed(claimed, from)
	case fault.Unauthorized, fault.IPNotAllowed, fault.SignatureInvalid:
		g.failed(claimed, from)
	}
	return caller, err
}

func (g *Guard) failed(claimed string, from netip.Addr) {
	g.Alerts.Failure(from)
	if g.Lockout.Failed(claimed, from) {
		g.Alerts.Raise(alert.Alert{
			Kind: alert.LockedOut, Address: from.Unmap().String(),
			Text: fmt.Sprintf("too many authentications failed from %s; it is locked out for a while", from.Unmap()),
		})
	}
}
