package kms

import (
	"github.com/trikey/trikey/kms/approval"
	"github.com/trikey/trikey/kms/people"
)

// People returns the registry of those who manage the service.
func (s *Service) People() (*people.Registry, error) {
	if _, err := s.serving(); err != nil {
		return nil, err
	}
	return s.people, nil
}

// Approvals returns where requests are kept that another person must approve.
func (s *Service) Approvals() (*approval.Desk, error) {
	if _, err := s.serving(); err != nil {
		return nil, err
	}
	return &approval.Desk{Keep: s.keep, Now: s.cfg.Now}, nil
}
