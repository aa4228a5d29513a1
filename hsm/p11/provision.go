package p11

import (
	"errors"
	"slices"
	"unsafe"

	"github.com/miekg/pkcs11"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// InitToken initialises the first token of a module that is not initialised yet,
// and returns its identity.
func InitToken(cfg ModuleConfig, label string, soPIN, pin *secret.Bytes) (id hsm.CardID, err error) {
	return initialise(cfg, hsm.CardID{Label: label}, soPIN, pin)
}

// initialise initialises the first blank token of a module, of the serial where one
// is given.
func initialise(cfg ModuleConfig, want hsm.CardID, soPIN, pin *secret.Bytes) (id hsm.CardID, err error) {
	label := want.Label
	before, err := initToken(cfg, want, soPIN, pin)
	if err != nil {
		return id, err
	}
	// SoftHSM renumbers its slots now: look again, from the beginning.
	m, err := openModule(cfg)
	if err != nil {
		return id, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	list, err := m.tokens()
	if err != nil {
		return id, err
	}
	for _, t := range list {
		if t.info.Initialised && t.info.Label == label && !slices.Contains(before, t.info.Serial) {
			return t.info.CardID, nil
		}
	}
	return id, fault.New(fault.ModuleFault, "the token %q is not to be found after it was initialised", label)
}

// initToken returns the serials of the tokens that there were before.
func initToken(cfg ModuleConfig, want hsm.CardID, soPIN, pin *secret.Bytes) (before []string, err error) {
	m, err := openModule(cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	list, err := m.tokens()
	if err != nil {
		return nil, err
	}
	var blank *token
	for i, t := range list {
		if !t.info.Initialised && blank == nil && (want.Serial == "" || want.Serial == t.info.Serial) {
			blank = &list[i]
		}
		if t.info.Initialised {
			before = append(before, t.info.Serial)
		}
	}
	if blank == nil {
		return nil, fault.New(fault.CardAbsent, "%s has no token that is not initialised yet; insert an empty one", cfg.Path)
	}
	return before, soPIN.Use(func(so []byte) error {
		return pin.Use(func(p []byte) error {
			return m.call(fault.ModuleFault, "initialise a token", func(c *pkcs11.Ctx) error {
				return setPINs(c, blank.slot, want.Label, pinString(so), pinString(p))
			})
		})
	})
}

// pinString is a string over the bytes, not a copy of them.
func pinString(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b)) //nolint:gosec // a copy would lie on the heap
}

func setPINs(c *pkcs11.Ctx, slot uint, label, soPIN, pin string) error {
	// A token that took the SO PIN and refuses the PIN would be neither blank nor of
	// use: so their lengths are looked at before anything is done.
	info, err := c.GetTokenInfo(slot)
	if err != nil {
		return err
	}
	for name, p := range map[string]string{"PIN": pin, "SO PIN": soPIN} {
		if n := uint(len(p)); n < info.MinPinLen || info.MaxPinLen > 0 && n > info.MaxPinLen {
			return fault.New(fault.PINIncorrect, "the new %s is too short or too long for the card, which takes %d to %d characters; nothing was done",
				name, info.MinPinLen, info.MaxPinLen)
		}
	}
	if err := c.InitToken(slot, soPIN, label); err != nil {
		return err
	}
	s, err := c.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return err
	}
	if err := c.Login(s, pkcs11.CKU_SO, soPIN); err != nil {
		return errors.Join(err, c.CloseSession(s))
	}
	err = c.InitPIN(s, pin)
	return errors.Join(err, c.Logout(s), c.CloseSession(s))
}
