package hsm

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// ID is a random 128-bit identifier, printed as hex.
type ID [16]byte

// NewID draws an identifier.
func NewID() ID {
	var id ID
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the process instead
	return id
}

// String returns the identifier in hex.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText returns the identifier in hex.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText parses hex.
func (id *ID) UnmarshalText(text []byte) error {
	if n, err := hex.Decode(id[:], text); err != nil || n != len(id) || len(text) != 2*len(id) {
		return fault.New(fault.BadRequest, "not an identifier of 32 hexadecimal digits")
	}
	return nil
}

// Commitment binds a card to the share that was dealt to it:
// SHA-256("trikey/v1/share" | split id | index | share).
type Commitment [sha256.Size]byte

// MarshalText returns the commitment in hex.
func (c Commitment) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(c[:])), nil }

// UnmarshalText parses hex.
func (c *Commitment) UnmarshalText(text []byte) error {
	if len(text) != 2*len(c) {
		return fault.New(fault.BadRequest, "not a commitment of 64 hexadecimal digits")
	}
	_, err := hex.Decode(c[:], text)
	return err
}

// Manifest describes one dealing of a root key. Every card of the dealing
// carries the same manifest, and the machine keeps it in its record. Nothing in
// it is secret.
type Manifest struct {
	MachineID   ID           `json:"machine_id"`
	RootID      ID           `json:"root_id"`
	Generation  uint32       `json:"generation"` // of the root key, from 1
	SplitID     ID           `json:"split_id"`
	Threshold   uint8        `json:"threshold"` // cards that rebuild the root
	Shares      uint8        `json:"shares"`    // cards dealt
	Region      string       `json:"region"`
	KCV         string       `json:"kcv"`
	Commitments []Commitment `json:"commitments"`
}

// Share is one card's part of the root key. Index counts from 1. Value is the
// Shamir share, as hsm.Deal made it.
type Share struct {
	Manifest Manifest
	Index    uint8
	Value    *secret.Bytes
}

// Root is a rebuilt root key and what is known of it.
type Root struct {
	Manifest
	Key *secret.Bytes
}

const (
	shareMagic = "TKSHARE1"
	// ShareSize is the length of a share of a 256-bit root: one more byte than
	// the root, for the share's coordinate.
	ShareSize = RootSize + 1
	// RootSize is the length of a root key in bytes.
	RootSize = 32
	// MaxEnvelope bounds the size of a share's envelope on a card.
	MaxEnvelope = 16 << 10
	// MaxCards is the largest number of cards a root is dealt to.
	MaxCards = 16
)

func (m *Manifest) append(dst []byte) []byte {
	dst = append(dst, m.MachineID[:]...)
	dst = append(dst, m.RootID[:]...)
	dst = binary.BigEndian.AppendUint32(dst, m.Generation)
	dst = append(dst, m.SplitID[:]...)
	dst = append(dst, m.Threshold, m.Shares, byte(len(m.Region)))
	dst = append(dst, m.Region...)
	dst = append(dst, byte(len(m.KCV)))
	dst = append(dst, m.KCV...)
	for _, c := range m.Commitments {
		dst = append(dst, c[:]...)
	}
	return dst
}

// Marshal returns the share in the envelope that a card carries:
//
//	magic "TKSHARE1" | length 4 | manifest | index 1 | share 33 | SHA-256 32
//
// where length counts the whole envelope and the manifest is
//
//	machine id 16 | root id 16 | generation 4 | split id 16 | threshold 1 | shares 1 |
//	region length 1 | region | KCV length 1 | KCV | shares × commitment 32
func (s *Share) Marshal() (*secret.Bytes, error) {
	head := append([]byte(shareMagic), 0, 0, 0, 0)
	head = append(s.Manifest.append(head), s.Index)
	size := len(head) + ShareSize + sha256.Size
	binary.BigEndian.PutUint32(head[len(shareMagic):], uint32(size))
	return secret.Fill(size, func(b []byte) error {
		n := copy(b, head)
		return s.Value.Use(func(v []byte) error {
			n += copy(b[n:], v)
			return secret.Scrub(func() error {
				sum := sha256.Sum256(b[:n])
				copy(b[n:], sum[:])
				return nil
			})
		})
	})
}

// ParseShare reads an envelope. An object that is none of Trikey's is
// fault.CardEmpty; one that is but does not add up is fault.CardDamaged.
func ParseShare(envelope *secret.Bytes) (*Share, error) {
	var s *Share
	err := envelope.Use(func(b []byte) error {
		if len(b) < len(shareMagic) || string(b[:len(shareMagic)]) != shareMagic {
			return fault.New(fault.CardEmpty, "the object on the card is not a Trikey share")
		}
		var err error
		s, err = parseShare(b)
		return err
	})
	return s, err
}

func parseShare(b []byte) (*Share, error) {
	damaged := fault.New(fault.CardDamaged, "the share on this card is damaged (its checksum does not match); "+
		"use another card, and replace this one")
	r := reader{b: b[len(shareMagic):]}
	if length := r.u32(); int(length) != len(b) || len(b) < sha256.Size {
		return nil, damaged
	}
	if err := secret.Scrub(func() error {
		sum := sha256.Sum256(b[:len(b)-sha256.Size])
		if !bytes.Equal(sum[:], b[len(b)-sha256.Size:]) {
			return damaged
		}
		return nil
	}); err != nil {
		return nil, err
	}
	var m Manifest
	copy(m.MachineID[:], r.take(16))
	copy(m.RootID[:], r.take(16))
	m.Generation = r.u32()
	copy(m.SplitID[:], r.take(16))
	m.Threshold, m.Shares = r.u8(), r.u8()
	m.Region = string(r.take(int(r.u8())))
	m.KCV = string(r.take(int(r.u8())))
	for range m.Shares {
		var c Commitment
		copy(c[:], r.take(len(c)))
		m.Commitments = append(m.Commitments, c)
	}
	index, value := r.u8(), r.take(ShareSize)
	if r.short || len(r.b) != sha256.Size || index == 0 || index > m.Shares || m.Threshold > m.Shares {
		return nil, damaged
	}
	kept, err := secret.Fill(ShareSize, func(p []byte) error { copy(p, value); return nil })
	if err != nil {
		return nil, err
	}
	return &Share{Manifest: m, Index: index, Value: kept}, nil
}

// Commit computes the share's commitment.
func (s *Share) Commit() (Commitment, error) {
	var c Commitment
	err := s.Value.Use(func(v []byte) error {
		return secret.Scrub(func() error {
			h := sha256.New()
			h.Write([]byte("trikey/v1/share"))
			h.Write(s.Manifest.SplitID[:])
			h.Write([]byte{s.Index})
			h.Write(v)
			h.Sum(c[:0])
			secret.Erase(h)
			return nil
		})
	})
	return c, err
}

// Check compares the share with the machine's record, and names the first thing
// that does not fit. It is done before any share is combined with another,
// because combining never notices a wrong share.
func (s *Share) Check(record *Manifest) error {
	m := &s.Manifest
	switch {
	case m.MachineID != record.MachineID:
		return fault.New(fault.CardOtherMachine, "this card belongs to machine %s, not to this one (%s)", m.MachineID, record.MachineID)
	case m.Generation < record.Generation:
		return fault.New(fault.CardOlder, "this card is of root generation %d; the machine is at %d: use the cards of the last rotation",
			m.Generation, record.Generation)
	case m.Generation > record.Generation:
		return fault.New(fault.CardNewer, "this card is of root generation %d, but the machine's record is at %d: "+
			"has the data directory been rolled back? Restore the newest one", m.Generation, record.Generation)
	case m.SplitID != record.SplitID:
		return fault.New(fault.CardSuperseded, "this card is of split %s; the machine's cards are of split %s: "+
			"use the cards dealt last", m.SplitID, record.SplitID)
	case !bytes.Equal(m.append(nil), record.append(nil)):
		return fault.New(fault.CardMismatch, "the manifest on this card is not the machine's: the card, or the machine's record, was altered")
	}
	if s.Index == 0 || int(s.Index) > len(record.Commitments) {
		return fault.New(fault.CardMismatch, "share %d is none of this dealing's", s.Index)
	}
	c, err := s.Commit()
	if err != nil {
		return err
	}
	if c != record.Commitments[s.Index-1] {
		return fault.New(fault.CardMismatch, "the share on this card is not the one that was dealt to it: the card is forged or was rewritten")
	}
	return nil
}

// reader takes fields off a byte slice and remembers whether one was missing.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.short, r.b = true, nil
		return nil
	}
	field := r.b[:n]
	r.b = r.b[n:]
	return field
}

func (r *reader) u8() uint8 {
	if f := r.take(1); f != nil {
		return f[0]
	}
	return 0
}

func (r *reader) u32() uint32 {
	if f := r.take(4); f != nil {
		return binary.BigEndian.Uint32(f)
	}
	return 0
}
