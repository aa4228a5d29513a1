// Package p11 reaches hardware through PKCS#11: key cards (Reader) and the
// machine's chip (Chip).
//
// PKCS#11 libraries are unforgiving: a call after C_Finalize, or during it, ends
// the process, and a library that is initialised twice is shared without either
// knowing. So a module has one owner per real path, and every call goes through a
// lock that closing waits for.
//
// The package also wipes what its C libraries leave on the C heap (wipe.c).
package p11

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/miekg/pkcs11"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
)

// module is an initialised library.
type module struct {
	path string // as configured
	real string // resolved

	mu  sync.RWMutex // held for reading through each call; guards ctx
	ctx *pkcs11.Ctx  // nil when closed
}

// owners has the real paths of the modules that are open in this process.
var owners = struct {
	mu    sync.Mutex // also held while the environment is set for a library
	paths map[string]bool
}{paths: map[string]bool{}}

func openModule(cfg ModuleConfig) (*module, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	real, err := filepath.EvalSymlinks(cfg.Path)
	if err != nil {
		return nil, fault.Wrap(fault.ModuleFault, err, "the PKCS#11 module %s is not there; install it, or correct its path", cfg.Path)
	}
	owners.mu.Lock()
	defer owners.mu.Unlock()
	if owners.paths[real] {
		return nil, fault.New(fault.ModuleFault, "the PKCS#11 module %s is in use by another part of this machine; "+
			"give the chip and the card readers a copy of the library each", cfg.Path)
	}
	for name, value := range cfg.Env {
		if err := os.Setenv(name, value); err != nil {
			return nil, fault.Wrap(fault.BadConfig, err, "environment of the PKCS#11 module %s", cfg.Path)
		}
	}
	ctx := pkcs11.New(real)
	if ctx == nil {
		return nil, fault.New(fault.ModuleFault, "%s is not a PKCS#11 module that loads on this system", cfg.Path)
	}
	if err := ctx.Initialize(); err != nil {
		ctx.Destroy()
		return nil, translate(err, fault.ModuleFault, "initialise the PKCS#11 module "+cfg.Path)
	}
	owners.paths[real] = true
	return &module{path: cfg.Path, real: real, ctx: ctx}, nil
}

// close waits for calls under way, then finalizes the library.
func (m *module) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx == nil {
		return nil
	}
	err := m.ctx.Finalize()
	m.ctx.Destroy()
	m.ctx = nil
	owners.mu.Lock()
	delete(owners.paths, m.real)
	owners.mu.Unlock()
	return translate(err, fault.ModuleFault, "finalize the PKCS#11 module "+m.path)
}

// call runs f while the module is open. code is what a return value means that
// says nothing more particular.
func (m *module) call(code fault.Code, what string, f func(c *pkcs11.Ctx) error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.ctx == nil {
		return fault.New(code, "%s: the PKCS#11 module %s is closed", what, m.path)
	}
	return translate(f(m.ctx), code, what)
}

// meanings are the return values that say something particular (PKCS#11 v2.40,
// section 5.1).
var meanings = map[pkcs11.Error]struct {
	code fault.Code
	next string
}{
	pkcs11.CKR_PIN_INCORRECT: {fault.PINIncorrect, "the PIN is not this card's; it was tried once and will not be tried again by itself"},
	pkcs11.CKR_PIN_INVALID:   {fault.PINIncorrect, "the PIN has characters that the card does not take"},
	pkcs11.CKR_PIN_LEN_RANGE: {fault.PINIncorrect, "the PIN is too short or too long for the card"},
	pkcs11.CKR_PIN_EXPIRED:   {fault.PINLocked, "the PIN has expired; change it first"},
	pkcs11.CKR_PIN_LOCKED:    {fault.PINLocked, "the card has locked its PIN; unlock it with its SO PIN, or use another card"},
	// Never a success: the PIN that was given was not looked at.
	pkcs11.CKR_USER_ALREADY_LOGGED_IN: {fault.ModuleFault, "the module says that somebody is logged in already, and did not look at the PIN; restart the machine"},
	pkcs11.CKR_TOKEN_NOT_PRESENT:      {fault.CardAbsent, "the card is not in the reader; insert it"},
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED:   {fault.CardAbsent, "the reader does not recognise the card; insert it again"},
	pkcs11.CKR_DEVICE_REMOVED:         {fault.CardAbsent, "the card was removed; insert it again"},
	pkcs11.CKR_SLOT_ID_INVALID:        {fault.CardAbsent, "the reader is gone; plug it in again"},
	pkcs11.CKR_SESSION_HANDLE_INVALID: {fault.CardAbsent, "the card was removed; insert it again"},
	pkcs11.CKR_DEVICE_MEMORY:          {fault.CardFull, "the card has no room"},
	pkcs11.CKR_TOKEN_WRITE_PROTECTED:  {fault.CardFull, "the card is write protected"},
	pkcs11.CKR_SESSION_READ_ONLY:      {fault.CardFull, "the card is write protected"},
}

// translate gives a return value its fault. Its text keeps the value's name.
func translate(err error, code fault.Code, what string) error {
	if err == nil {
		return nil
	}
	var rv pkcs11.Error
	if errors.As(err, &rv) {
		if m, ok := meanings[rv]; ok {
			return fault.Wrap(m.code, rv, "%s: %s", what, m.next)
		}
		return fault.Wrap(code, rv, "%s", what)
	}
	var f *fault.Error
	if errors.As(err, &f) {
		return err
	}
	return fault.Wrap(code, err, "%s", what)
}

// token is a token in a slot, for as long as the module stays open.
type token struct {
	slot uint
	info hsm.CardInfo
}

// tokens lists what is inserted now.
func (m *module) tokens() (list []token, err error) {
	err = m.call(fault.ModuleFault, "list the slots of "+m.path, func(c *pkcs11.Ctx) error {
		slots, err := c.GetSlotList(true)
		if err != nil {
			return err
		}
		for _, slot := range slots {
			info, err := c.GetTokenInfo(slot)
			if err != nil {
				continue // pulled out meanwhile, or not a token that talks
			}
			list = append(list, token{slot, m.cardInfo(info)})
		}
		return nil
	})
	return list, err
}

func (m *module) cardInfo(i pkcs11.TokenInfo) hsm.CardInfo {
	has := func(flag uint) bool { return i.Flags&flag != 0 }
	return hsm.CardInfo{
		CardID:       hsm.CardID{Module: m.path, Serial: trim(i.SerialNumber), Label: trim(i.Label)},
		Manufacturer: trim(i.ManufacturerID), Model: trim(i.Model),
		Initialised: has(pkcs11.CKF_TOKEN_INITIALIZED), PINLocked: has(pkcs11.CKF_USER_PIN_LOCKED),
		PINFinalTry: has(pkcs11.CKF_USER_PIN_FINAL_TRY), PINCountLow: has(pkcs11.CKF_USER_PIN_COUNT_LOW),
	}
}

// trim takes off the padding of PKCS#11's fixed fields: blanks, or NULs.
func trim(s string) string { return strings.TrimRight(s, " \x00") }

// find returns the token of that identity. An empty label or module means any.
func (m *module) find(id hsm.CardID) (token, error) {
	list, err := m.tokens()
	if err != nil {
		return token{}, err
	}
	for _, t := range list {
		if t.info.Initialised && (id.Serial == "" || t.info.Serial == id.Serial) && (id.Label == "" || t.info.Label == id.Label) {
			return t, nil
		}
	}
	return token{}, fault.New(fault.CardAbsent, "the card %s is not in a reader of %s; insert it", describe(id), m.path)
}

func describe(id hsm.CardID) string {
	switch {
	case id.Label == "":
		return "with serial " + id.Serial
	case id.Serial == "":
		return fmt.Sprintf("%q", id.Label)
	}
	return fmt.Sprintf("%q (serial %s)", id.Label, id.Serial)
}
