package p11

import (
	"github.com/miekg/pkcs11"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/pintry"
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

// attempt makes a login, which it may refuse to do, or count.
type attempt func(card hsm.CardInfo, login func() error) error

// unlessItLocks looks at what the token says of its PIN first: a try that would lock
// it is not made. The chip's PIN is tried so: a machine that starts again and again
// with a wrong PIN in its configuration must not need a person for every start.
func unlessItLocks(card hsm.CardInfo, login func() error) error {
	if card.PINLocked || card.PINFinalTry {
		return pintry.Check(card)
	}
	return login()
}

// login opens a read-write session and tries the PIN at most once.
func (m *module) login(t token, pin *secret.Bytes, code fault.Code, attempt attempt) (*session, error) {
	if pin.Len() == 0 {
		return nil, fault.New(fault.PINIncorrect, "no PIN was given for %s; nothing was tried", describe(t.info.CardID))
	}
	s := &session{m: m, code: code}
	name := "log in to " + describe(t.info.CardID)
	if err := s.open(t.slot); err != nil {
		return nil, err
	}
	err := attempt(t.info, func() error {
		return s.call(name, func(c *pkcs11.Ctx) error {
			return pin.Use(func(p []byte) error {
				// A string over the protected page: the binding copies it to the C
				// heap, where free wipes it.
				return c.Login(s.handle, pkcs11.CKU_USER, pinString(p))
			})
		})
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
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
