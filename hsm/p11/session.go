package p11

import (
	"github.com/miekg/pkcs11"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// session is a logged-in session with a token.
type session struct {
	m      *module
	handle pkcs11.SessionHandle
	code   fault.Code // of failures that say nothing more particular
}

func (s *session) call(what string, f func(c *pkcs11.Ctx) error) error {
	return s.m.call(s.code, what, f)
}

// login opens a read-write session and tries the PIN once. What the token says of
// its PIN is looked at first: a try that would lock it is not made.
func (m *module) login(t token, pin *secret.Bytes, code fault.Code) (*session, error) {
	if err := mayTry(t); err != nil {
		return nil, err
	}
	if pin.Len() == 0 {
		return nil, fault.New(fault.PINIncorrect, "no PIN was given for %s; nothing was tried", describe(t.info.CardID))
	}
	s := &session{m: m, code: code}
	name := "log in to " + describe(t.info.CardID)
	if err := s.open(t.slot); err != nil {
		return nil, err
	}
	err := s.call(name, func(c *pkcs11.Ctx) error {
		return pin.Use(func(p []byte) error {
			// A string over the protected page: the binding copies it to the C
			// heap, where free wipes it.
			return c.Login(s.handle, pkcs11.CKU_USER, pinString(p))
		})
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// mayTry refuses a login that could lock the token.
func mayTry(t token) error {
	switch {
	case t.info.PINLocked:
		return fault.New(fault.PINLocked, "card %s has locked its PIN; unlock it with its SO PIN, or use another card", describe(t.info.CardID))
	case t.info.PINFinalTry:
		return fault.New(fault.PINFinalTry, "card %s has one try left before it locks; make sure of the PIN and enter it "+
			"with the card maker's tool first, or use another card", describe(t.info.CardID))
	}
	return nil
}

func (s *session) open(slot uint) error {
	return s.call("open a session", func(c *pkcs11.Ctx) (err error) {
		s.handle, err = c.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		return err
	})
}

func (s *session) close() {
	// A session whose token is gone is closed already.
	_ = s.call("close a session", func(c *pkcs11.Ctx) error { return c.CloseSession(s.handle) })
}

func (s *session) logout() {
	_ = s.call("log out", func(c *pkcs11.Ctx) error { return c.Logout(s.handle) })
	s.close()
}

// objects returns the handles of all objects that match.
func (s *session) objects(template ...*pkcs11.Attribute) (all []pkcs11.ObjectHandle, err error) {
	err = s.call("find objects", func(c *pkcs11.Ctx) error {
		if err := c.FindObjectsInit(s.handle, template); err != nil {
			return err
		}
		for {
			found, _, err := c.FindObjects(s.handle, 64)
			if err != nil || len(found) == 0 {
				if final := c.FindObjectsFinal(s.handle); err == nil {
					err = final
				}
				return err
			}
			all = append(all, found...)
		}
	})
	return all, err
}

// attribute returns one attribute of an object.
func (s *session) attribute(o pkcs11.ObjectHandle, kind uint) (value []byte, err error) {
	err = s.call("read an object", func(c *pkcs11.Ctx) error {
		list, err := c.GetAttributeValue(s.handle, o, []*pkcs11.Attribute{pkcs11.NewAttribute(kind, nil)})
		if err == nil {
			value = list[0].Value
		}
		return err
	})
	return value, err
}
