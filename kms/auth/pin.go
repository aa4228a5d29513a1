package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/record"
)

// SPKI is the SHA-256 of a certificate's SubjectPublicKeyInfo, as in RFC 7469, section 2.4:
// it stays the same when a certificate is renewed for the same key.
type SPKI [sha256.Size]byte

// ParseSPKI reads 64 hexadecimal digits.
func ParseSPKI(text string) (s SPKI, err error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil || len(raw) != len(s) {
		return s, fault.New(fault.BadRequest, "spki: %q is not the SHA-256 of a public key, 64 hexadecimal digits", text)
	}
	return SPKI(raw), nil
}

// String writes 64 hexadecimal digits.
func (s SPKI) String() string { return hex.EncodeToString(s[:]) }

// MarshalText is String.
func (s SPKI) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseSPKI.
func (s *SPKI) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSPKI(string(text))
	return err
}

// MaxPins is how many client certificates an app may have.
const MaxPins = 64

// Pin is a public key that an app's clients have certificates for. It is a record of its
// own, by its name, so that of two apps that are given the same one does not get it.
type Pin struct {
	SPKI  SPKI      `json:"spki"`
	App   string    `json:"app"`
	Added time.Time `json:"added"`

	revision int64 // the store's
}

func pinEntry(s SPKI) string { return pinPrefix + s.String() }

// pinOf returns the pin whose record has that name, zero when it is not one's.
func pinOf(entry string) (s SPKI) {
	if text, ok := strings.CutPrefix(entry, pinPrefix); ok {
		s, _ = ParseSPKI(text)
	}
	return s
}

func (a *Apps) takePin(r record.Record) error {
	pin := &Pin{revision: r.Entry}
	if err := r.Decode(pin); err != nil {
		return err
	}
	if r.Name != pinEntry(pin.SPKI) {
		return fault.New(fault.RecordDamaged, "record %s: is not the certificate that it is named for", r.Name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.pins[pin.SPKI]; old == nil || old.revision < pin.revision {
		a.pins[pin.SPKI] = pin
	}
	return nil
}

// Pins returns the public keys of an app's client certificates, the oldest first.
func (a *Apps) Pins(app string) (pins []Pin) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, pin := range a.pins {
		if pin.App == app {
			pins = append(pins, *pin)
		}
	}
	slices.SortFunc(pins, func(x, y Pin) int {
		return strings.Compare(x.Added.Format(time.RFC3339)+x.SPKI.String(), y.Added.Format(time.RFC3339)+y.SPKI.String())
	})
	return pins
}

// AddPin lets an app's clients call with certificates for a public key.
func (a *Apps) AddPin(ctx context.Context, app string, s SPKI) error {
	if _, err := a.Find(app); err != nil {
		return err
	}
	if len(a.Pins(app)) >= MaxPins {
		return fault.New(fault.Conflict, "app %q has %d client certificates already; remove one first (trikey app remove-cert)", app, MaxPins)
	}
	pin := Pin{SPKI: s, App: app, Added: a.now().UTC()}
	content, err := record.JSON(pin)
	if err != nil {
		return err
	}
	revision, err := a.keep.Apply(ctx, record.Create(pinEntry(s), content))
	switch {
	case errors.Is(err, record.ErrRotated):
		return a.AddPin(ctx, app, s)
	case errors.Is(err, keystore.ErrConflict):
		return fault.New(fault.Conflict, "spki: a certificate of this public key is registered already, for app %q", a.AppOf(s))
	case err != nil:
		return err
	}
	return a.takePin(record.Record{Name: pinEntry(s), Content: content, Entry: revision})
}

// RemovePin ends what AddPin has begun, at once, on connections that are open too.
func (a *Apps) RemovePin(ctx context.Context, app string, s SPKI) error {
	r, err := a.keep.Get(ctx, pinEntry(s))
	var pin Pin
	if err == nil {
		err = r.Decode(&pin)
	}
	if errors.Is(err, keystore.ErrNotFound) || err == nil && pin.App != app {
		return fault.New(fault.NotFound, "app %q has no client certificate of that public key; trikey app show %s lists those it has", app, app)
	}
	if err != nil {
		return err
	}
	revision, err := a.keep.Apply(ctx, record.Delete(r))
	if errors.Is(err, record.ErrRotated) || errors.Is(err, keystore.ErrConflict) {
		return a.RemovePin(ctx, app, s)
	}
	if err == nil {
		a.Remove(r.Name, revision)
	}
	return err
}

// AppOf returns the name of the app that a public key is of; "" when it is nobody's.
func (a *Apps) AppOf(s SPKI) string {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if pin := a.pins[s]; pin != nil {
		return pin.App
	}
	return ""
}

// AuthenticatePin returns the app of a public key as a caller. That the caller has the
// private key TLS has shown.
func (a *Apps) AuthenticatePin(s SPKI, from netip.Addr) (*Caller, error) {
	a.mu.RLock()
	pin := a.pins[s]
	var app *App
	if pin != nil {
		app = a.byName[pin.App]
	}
	a.mu.RUnlock()
	if app == nil || app.Disabled {
		return nil, errUnknownCertificate
	}
	caller := &Caller{App: app, Method: Certificate, From: from, pin: s}
	return caller, caller.allows()
}

var errUnknownCertificate = fault.New(fault.Unauthorized, "the client certificate is not one of an app; register it (trikey app add-cert), or send the AppKey and AppSecret")
