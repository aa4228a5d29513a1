package custody

import (
	"context"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Inspect tells what is on a card, without giving it to anything.
func (d *Desk) Inspect(ctx context.Context, id hsm.CardID, pin *secret.Bytes) (hsm.CardReport, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	report := hsm.CardReport{Card: hsm.CardInfo{CardID: id}, Shares: []hsm.ShareReport{}}
	cards, err := d.cfg.Reader.Cards(ctx)
	if err != nil {
		return report, err
	}
	for _, c := range cards {
		if c.Serial == id.Serial && (id.Module == "" || c.Module == id.Module) {
			report.Card = c
		}
	}
	err = d.withCard(ctx, id, pin, func(card hsm.Card) error {
		// The list is of before the login, which was a success.
		report.Card.PINTries, report.Card.PINCountLow, report.Card.PINFinalTry = 0, false, false
		return eachShare(ctx, card, func(s *hsm.Share, err error) bool {
			if fault.CodeOf(err) != fault.CardEmpty {
				report.Shares = append(report.Shares, d.describe(s, err))
			}
			return false
		})
	})
	return report, err
}

func (d *Desk) describe(s *hsm.Share, err error) hsm.ShareReport {
	var r hsm.ShareReport
	if s != nil {
		m := s.Manifest
		r = hsm.ShareReport{
			MachineID: m.MachineID, Generation: m.Generation, SplitID: m.SplitID, Index: s.Index,
			Threshold: m.Threshold, Shares: m.Shares, Region: m.Region, KCV: m.KCV,
		}
		if d.record == nil {
			err = fault.New(fault.CardOtherMachine, "this machine is blank: no card is its own")
		} else {
			err = s.Check(&d.record.Manifest)
		}
	}
	if r.Verdict = "ok"; err != nil {
		r.Verdict, r.Detail = string(fault.CodeOf(err)), err.Error()
	}
	return r
}
