package custody

import (
	"bytes"
	"context"
	_ "embed" // the page
	"errors"
	"html/template"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
)

// sign signs a report.
func (d *Desk) sign(ctx context.Context, id *identity, r *hsm.Report) error {
	r.PublicKey, r.Fingerprint, r.Signature = id.PublicKey, hsm.Fingerprint(id.PublicKey), nil
	message, err := r.Message()
	if err != nil {
		return err
	}
	s, err := d.signWith(ctx, id, hsm.ReportContext, message)
	r.Signature = s.Signature
	return err
}

// report describes the ceremony, with what a dealing has made.
func (c *ceremony) report(m hsm.Manifest) hsm.Report {
	host, _ := os.Hostname()
	r := hsm.Report{
		Ceremony: c.id, Kind: c.plan.Kind, Started: c.started, Host: host, People: slices.Clone(c.plan.People),
		MachineID: m.MachineID, RootID: m.RootID, Generation: m.Generation, SplitID: m.SplitID, Threshold: m.Threshold,
		Shares: m.Shares, Region: m.Region, KCV: m.KCV, Cards: []hsm.ReportCard{},
	}
	add := func(index uint8, id hsm.CardID, role string) {
		r.Cards = append(r.Cards, hsm.ReportCard{Index: index, Serial: id.Serial, Label: id.Label, Role: role})
	}
	shown := map[string]bool{}
	for _, h := range c.gathered {
		shown[h.id.Key()] = true
		role := hsm.RoleAuthorised
		switch c.plan.Kind {
		case hsm.VerifyCards:
			role = hsm.RoleTested
		case hsm.Destroy:
			role = hsm.RoleErased
		}
		add(h.share.Index, h.id, role)
	}
	for i, card := range c.dealt {
		add(uint8(i+1), card.id, hsm.RoleDealt)
	}
	if c.before == nil {
		return r
	}
	for _, card := range c.before.Cards {
		id := hsm.CardID{Serial: card.Serial, Label: card.Label}
		switch {
		case slices.Contains(c.plan.Lost, card.Serial):
			add(card.Index, id, hsm.RoleLost)
		case !c.deals() && !shown[id.Key()]:
			add(card.Index, id, hsm.RoleAbsent)
		}
	}
	return r
}

func (c *ceremony) newRecord(now time.Time) *hsm.Record {
	record := &hsm.Record{Manifest: *c.manifest, Created: now}
	for i, card := range c.dealt {
		record.Cards = append(record.Cards, hsm.CardRecord{Index: uint8(i + 1), Serial: card.id.Serial, Label: card.id.Label})
	}
	return record
}

//go:embed report.html
var pageText string

var page = template.Must(template.New("report").Parse(pageText))

// finishReport signs the report and keeps it as JSON and as a page to print.
func (d *Desk) finishReport(ctx context.Context, id *identity, r hsm.Report) (hsm.Report, error) {
	r.Ended = d.cfg.Now().UTC()
	if err := d.sign(ctx, id, &r); err != nil {
		return r, fault.Wrap(fault.CodeOf(err), err, "the ceremony counts, but its report could not be signed")
	}
	dir := filepath.Join(d.cfg.Dir, hsm.ReportDir)
	name := r.Name()
	var html bytes.Buffer
	err := errors.Join(os.MkdirAll(dir, 0o700), durable.Write(dir, name+".json", r), page.Execute(&html, r),
		os.WriteFile(filepath.Join(dir, name+".html"), html.Bytes(), 0o600))
	if err != nil {
		return r, fault.Wrap(fault.Internal, err, "the ceremony counts, but its report could not be kept")
	}
	return r, nil
}
