package custody

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	_ "embed" // the page
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/durable"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

const (
	identityFile = "identity.json"
	// ReportDir is where reports of ceremonies are, in the data directory.
	ReportDir = "ceremonies"
)

// identity is the key that signs reports: its seed as the chip encrypts it.
type identity struct {
	PublicKey []byte `json:"public_key"`
	Sealed    []byte `json:"sealed"`
}

// identity returns the machine's identity key, which is drawn when it is first needed.
func (d *Desk) identity(ctx context.Context) (*identity, error) {
	d.drawing.Lock()
	defer d.drawing.Unlock()
	var id identity
	found, err := durable.Read(filepath.Join(d.cfg.Dir, identityFile), &id)
	if err != nil || found {
		return &id, err
	}
	seed, err := secret.Random(ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	defer seed.Wipe()
	err = withKey(seed, func(private ed25519.PrivateKey) {
		id.PublicKey = bytes.Clone(private[ed25519.SeedSize:])
	})
	if err != nil {
		return nil, err
	}
	if id.Sealed, err = d.cfg.Chip.Seal(ctx, seed); err != nil {
		return nil, err
	}
	return &id, durable.Write(d.cfg.Dir, identityFile, id)
}

// fingerprint is that of the identity key, "" while there is none.
func (d *Desk) fingerprint() string {
	var id identity
	if found, err := durable.Read(filepath.Join(d.cfg.Dir, identityFile), &id); err != nil || !found {
		return ""
	}
	return fingerprintOf(id.PublicKey)
}

func fingerprintOf(public []byte) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:])
}

// withKey makes the private key of a seed for as long as f runs.
func withKey(seed *secret.Bytes, f func(ed25519.PrivateKey)) error {
	return seed.Use(func(b []byte) error {
		return secret.Scrub(func() error {
			private := ed25519.NewKeyFromSeed(b)
			defer clear(private)
			f(private)
			return nil
		})
	})
}

// sign signs a report.
func (d *Desk) sign(ctx context.Context, id *identity, r *hsm.Report) error {
	r.PublicKey, r.Fingerprint, r.Signature = id.PublicKey, fingerprintOf(id.PublicKey), nil
	message, err := signed(*r)
	if err != nil {
		return err
	}
	r.Signature, err = d.signWith(ctx, id, message)
	return err
}

func (d *Desk) signWith(ctx context.Context, id *identity, message []byte) (signature []byte, err error) {
	seed, err := d.cfg.Chip.Open(ctx, id.Sealed)
	if err != nil {
		return nil, fault.Wrap(fault.ChipFault, err, "the machine's identity key (%s)", identityFile)
	}
	defer seed.Wipe()
	err = withKey(seed, func(private ed25519.PrivateKey) { signature = ed25519.Sign(private, message) })
	return signature, err
}

// auditPrefix begins what the identity key signs for the audit log, and none of what it
// signs otherwise.
const auditPrefix = "trikey/v1/audit/"

// AuditKey returns the public identity key, which SignAudit signs with. It does not
// wait for a ceremony.
func (d *Desk) AuditKey(ctx context.Context) (ed25519.PublicKey, error) {
	id, err := d.identity(ctx)
	if err != nil {
		return nil, err
	}
	return id.PublicKey, nil
}

// SignAudit signs the text of a checkpoint of the audit log (c2sp.org/signed-note) with
// the identity key. It works while the machine is sealed or blank: the key needs the
// chip only.
func (d *Desk) SignAudit(ctx context.Context, text []byte) ([]byte, error) {
	if !bytes.HasPrefix(text, []byte(auditPrefix)) {
		return nil, fault.New(fault.BadRequest, "what the audit log has signed begins with %s", auditPrefix)
	}
	id, err := d.identity(ctx)
	if err != nil {
		return nil, err
	}
	return d.signWith(ctx, id, text)
}

// signed is what a report's signature is over: "trikey/v1/report" and the report as
// JSON, without the signature.
func signed(r hsm.Report) ([]byte, error) {
	r.Signature = nil
	body, err := json.Marshal(r, json.Deterministic(true))
	return append([]byte("trikey/v1/report\n"), body...), err
}

// CheckReport checks a report's signature, and that it is by the machine of that
// fingerprint, if one is given.
func CheckReport(r hsm.Report, fingerprint string) error {
	message, err := signed(r)
	if err != nil {
		return err
	}
	actual := fingerprintOf(r.PublicKey)
	switch {
	case len(r.PublicKey) != ed25519.PublicKeySize || !ed25519.Verify(r.PublicKey, message, r.Signature):
		return fault.New(fault.RecordDamaged, "the signature does not match: the report was altered")
	case actual != r.Fingerprint || fingerprint != "" && fingerprint != actual:
		return fault.New(fault.RecordDamaged, "the report is signed by the machine with fingerprint %s, not %s", actual, fingerprint)
	}
	return nil
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

// ReportName is the name of a report's files, without their ending.
func ReportName(r hsm.Report) string {
	return fmt.Sprintf("%s-%s-%.8s", r.Ended.Format("20060102T150405Z"), r.Kind, r.Ceremony)
}

// finishReport signs the report and keeps it as JSON and as a page to print.
func (d *Desk) finishReport(ctx context.Context, id *identity, r hsm.Report) (hsm.Report, error) {
	r.Ended = d.cfg.Now().UTC()
	if err := d.sign(ctx, id, &r); err != nil {
		return r, fault.Wrap(fault.CodeOf(err), err, "the ceremony counts, but its report could not be signed")
	}
	dir := filepath.Join(d.cfg.Dir, ReportDir)
	name := ReportName(r)
	var html bytes.Buffer
	err := errors.Join(os.MkdirAll(dir, 0o700), durable.Write(dir, name+".json", r), page.Execute(&html, r),
		os.WriteFile(filepath.Join(dir, name+".html"), html.Bytes(), 0o600))
	if err != nil {
		return r, fault.Wrap(fault.Internal, err, "the ceremony counts, but its report could not be kept")
	}
	return r, nil
}
