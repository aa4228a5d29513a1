package kms_test

import (
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/kms"
)

// TestExportedIsCertified: the certificate of a destruction says that the version was given
// out before, and is signed over that.
func TestExportedIsCertified(t *testing.T) {
	s := newSite(t)
	c := newClock()
	service, ctx := s.stepped(c, newSigner(t)), t.Context()
	s.createFor(service, kms.NewKey{Index: 7, Purpose: hsm.PurposeSeal, Exportable: true})
	begun, err := service.BeginImport(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	at := c.now().UTC().Truncate(time.Second)
	if _, err := service.ExportKey(ctx, "test", "7", 0, begun.Public); err != nil {
		t.Fatal(err)
	}
	if _, err := service.RotateKey(ctx, "test", 7); err != nil {
		t.Fatal(err)
	}
	if _, err := service.ScheduleDestroy(ctx, "test", 7, 0, 7); err != nil {
		t.Fatal(err)
	}
	c.days(7)
	if done, err := service.Tend(ctx); err != nil || done.Destroyed != 2 {
		t.Fatalf("%+v %v", done, err)
	}
	all, err := service.Certificates(ctx, 7)
	if err != nil || len(all) != 2 {
		t.Fatalf("%d certificates, %v", len(all), err)
	}
	for _, certificate := range all {
		if err := certificate.Check(""); err != nil {
			t.Error(err)
		}
		want := time.Time{}
		if certificate.Version == 1 {
			want = at
		}
		if !certificate.Exported.Equal(want) {
			t.Errorf("version %d: exported %s, want %s", certificate.Version, certificate.Exported, want)
		}
	}
	certificate := all[0]
	if certificate.Exported.IsZero() {
		certificate = all[1]
	}
	certificate.Exported = time.Time{}
	if certificate.Check("") == nil {
		t.Error("the signature does not cover that the version was exported")
	}
}
