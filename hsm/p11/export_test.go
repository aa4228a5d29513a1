package p11

import (
	"errors"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// LoginTwice logs in to a token that this process is logged in to, and returns what
// the second login said.
func LoginTwice(cfg ModuleConfig, id hsm.CardID, pin *secret.Bytes) (second error, err error) {
	m, err := openModule(cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	t, err := m.find(id)
	if err != nil {
		return nil, err
	}
	s, err := m.login(t, pin, fault.ModuleFault, unlessItLocks)
	if err != nil {
		return nil, err
	}
	defer s.logout()
	_, second = m.login(t, pin, fault.ModuleFault, unlessItLocks)
	return second, nil
}
