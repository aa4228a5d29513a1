package hsm

import (
	"fmt"

	"github.com/hashicorp/vault/shamir"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// Deal splits a root key into m.Shares shares, any m.Threshold of which rebuild
// it, and returns them with the manifest's commitments filled in. The caller
// wipes the shares' values.
func Deal(root *secret.Bytes, m Manifest) ([]*Share, error) {
	if m.Threshold < 2 || m.Shares < m.Threshold || m.Shares > MaxCards {
		return nil, fault.New(fault.BadRequest, "shares: %d of %d is not possible; take 2 to %d cards, of which at least 2 are needed",
			m.Threshold, m.Shares, MaxCards)
	}
	var shares []*Share
	err := root.Use(func(key []byte) error {
		return secret.Scrub(func() error {
			parts, err := shamir.Split(key, int(m.Shares), int(m.Threshold))
			if err != nil {
				return fmt.Errorf("hsm: split the root key: %w", err)
			}
			for i, part := range parts {
				value, moveErr := secret.Move(part)
				if moveErr != nil {
					err = moveErr // go on: every part must be wiped
					continue
				}
				shares = append(shares, &Share{Index: uint8(i + 1), Value: value})
			}
			return err
		})
	})
	m.Commitments = nil
	for _, s := range shares {
		s.Manifest = m // the commitment covers the split id
		c, commitErr := s.Commit()
		if commitErr != nil {
			err = commitErr
		}
		m.Commitments = append(m.Commitments, c)
	}
	if err != nil {
		WipeShares(shares)
		return nil, err
	}
	for _, s := range shares {
		s.Manifest = m
	}
	return shares, nil
}

// Rebuild combines exactly the threshold of shares into the root key. Combining
// accepts anything and returns a wrong key for a wrong share, so each share is held
// against the others' manifest and its commitment first, whoever else has done so; the
// caller then compares the key check value.
func Rebuild(shares []*Share) (*secret.Bytes, error) {
	if len(shares) == 0 || len(shares) != int(shares[0].Manifest.Threshold) {
		return nil, fault.New(fault.CardsMissing, "the root key is rebuilt from exactly its threshold of cards")
	}
	seen := map[uint8]bool{}
	for _, s := range shares {
		if err := s.Check(&shares[0].Manifest); err != nil {
			return nil, err
		}
		if seen[s.Index] {
			return nil, fault.New(fault.CardRepeated, "share %d is given twice", s.Index)
		}
		seen[s.Index] = true
	}
	parts := make([][]byte, 0, len(shares))
	return rebuild(parts, shares)
}

// rebuild borrows each share in turn, so that all are readable at once, and
// combines them in place.
func rebuild(parts [][]byte, rest []*Share) (*secret.Bytes, error) {
	var root *secret.Bytes
	if len(rest) > 0 {
		err := rest[0].Value.Use(func(part []byte) error {
			var err error
			root, err = rebuild(append(parts, part), rest[1:])
			return err
		})
		return root, err
	}
	err := secret.Scrub(func() error {
		key, err := shamir.Combine(parts)
		if err != nil {
			return fmt.Errorf("hsm: combine the shares: %w", err)
		}
		root, err = secret.Move(key)
		return err
	})
	return root, err
}

// WipeShares wipes the values of shares.
func WipeShares(shares []*Share) {
	for _, s := range shares {
		s.Value.Wipe()
	}
}
