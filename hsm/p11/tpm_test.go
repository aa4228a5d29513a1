package p11_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/hsm/p11/tpm"
	"github.com/trikey/trikey/internal/fault"
)

// newTPM returns a TPM with a token, made by the second implementation of PKCS#11.
func newTPM(t testing.TB, pin string) (*tpm.Device, hsm.CardID) {
	t.Helper()
	d, err := tpm.Start(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})
	id, err := d.NewToken("tpm", text(t, pin))
	if err != nil {
		t.Fatal(err)
	}
	return d, id
}

// login opens a card that must open.
func login(t testing.TB, r *p11.Reader, id hsm.CardID, pin string) hsm.Card {
	t.Helper()
	c, err := r.Login(t.Context(), id, text(t, pin))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// values returns what is on a card, in order.
func values(t testing.TB, c hsm.Card) (all []string) {
	t.Helper()
	objects, err := c.Objects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		_ = o.Use(func(b []byte) error { all = append(all, string(b)); return nil })
		o.Wipe()
	}
	slices.Sort(all)
	return all
}

// envelope returns a share's envelope, as a card gets to hold it.
func envelope(t testing.TB) string {
	t.Helper()
	s := &hsm.Share{
		Manifest: hsm.Manifest{Threshold: 3, Shares: 5, KCV: "cmac-aes:000000", Commitments: make([]hsm.Commitment, 5)}, Index: 2,
		Value: text(t, strings.Repeat("s", hsm.ShareSize)),
	}
	e, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Wipe()
	var raw string
	_ = e.Use(func(b []byte) error { raw = string(b); return nil })
	return raw
}

// TestSecondImplementation keeps a share on a card that is not SoftHSM's, with a reader
// of SoftHSM's beside it in the same process.
func TestSecondImplementation(t *testing.T) {
	d, id := newTPM(t, "1111")
	soft := newModule(t)
	other := newToken(t, soft, "soft", "2222")
	r := newReader(soft, d.Module)
	if cards, err := r.Cards(t.Context()); err != nil || len(cards) != 2 {
		t.Fatalf("both implementations: %+v, %v", cards, err)
	}
	share := envelope(t)
	for range 3 { // what is left in the TPM at the end of a session would add up
		for id, pin := range map[hsm.CardID]string{id: "1111", other: "2222"} {
			c := login(t, r, id, pin)
			if err := errors.Join(c.Store(t.Context(), "trikey share 2", text(t, share)), c.Store(t.Context(), "other", text(t, "other")), c.Close()); err != nil {
				t.Fatal(err)
			}
			c = login(t, r, id, pin)
			if got := values(t, c); len(got) != 2 || got[0] != share || got[1] != "other" {
				t.Errorf("card %q read back %q", id.Label, got)
			}
			if err := errors.Join(c.Remove(t.Context(), text(t, share)), c.Close()); err != nil {
				t.Fatal(err)
			}
			c = login(t, r, id, pin)
			if got := values(t, c); len(got) != 1 || got[0] != "other" {
				t.Errorf("card %q after removal: %q", id.Label, got)
			}
			if err := errors.Join(c.Remove(t.Context(), text(t, "other")), c.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, pin := range []string{"2222", ""} {
		if _, err := r.Login(t.Context(), id, text(t, pin)); !errors.Is(err, fault.PINIncorrect) {
			t.Errorf("PIN %q: %v", pin, err)
		}
	}
	c := login(t, r, id, "1111")
	if got := values(t, c); len(got) != 0 {
		t.Errorf("at the end: %q", got)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// A TPM counts wrong PINs, and Trikey says so when it has had enough.
func TestSecondImplementationLocks(t *testing.T) {
	d, id := newTPM(t, "1111")
	r := newReader(d.Module)
	try := func(pin string) error {
		// Confirmed: it is the TPM's own counting that is looked at here.
		c, err := r.Login(hsm.ConfirmLastTry(t.Context(), id.Serial), id, text(t, pin))
		if err == nil {
			err = c.Close()
		}
		return err
	}
	for range 2 {
		if err := try("2222"); !errors.Is(err, fault.PINIncorrect) {
			t.Errorf("a wrong PIN: %v", err)
		}
	}
	if err := try("1111"); err != nil {
		t.Errorf("the right PIN after wrong ones: %v", err)
	}
	for range 8 { // the TPM allows three in all
		if err := try("2222"); errors.Is(err, fault.PINLocked) {
			break
		} else if !errors.Is(err, fault.PINIncorrect) {
			t.Fatal(err)
		}
	}
	if err := try("1111"); !errors.Is(err, fault.PINLocked) {
		t.Errorf("the right PIN for a locked card: %v", err)
	}
}

// A TPM that ended is a card that is not there, or a module that says so.
func TestSecondImplementationGone(t *testing.T) {
	d, id := newTPM(t, "1111")
	soft := newModule(t)
	other := newToken(t, soft, "soft", "2222")
	r := newReader(soft, d.Module)
	open := login(t, r, id, "1111")
	if err := errors.Join(d.Stop(), d.Stop()); err != nil {
		t.Fatal(err)
	}
	_ = open.Close() // an error is as good as none: the TPM is gone
	if _, err := r.Login(t.Context(), id, text(t, "1111")); !errors.Is(err, fault.ModuleFault) && !errors.Is(err, fault.CardAbsent) {
		t.Errorf("login to a TPM that is gone: %v", err)
	}
	if err := login(t, r, other, "2222").Close(); err != nil {
		t.Error(err)
	}
}
