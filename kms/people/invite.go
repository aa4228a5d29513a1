package people

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/kms/record"
)

// InviteLife is how long an invitation can be taken up.
const InviteLife = 24 * time.Hour

// invitation is a person's that is to enrol. Its code has two halves: one is drawn by who
// asks for the person, the other here, and is told to who approves. So neither of the two
// can enrol in the person's stead.
type invitation struct {
	Halves  [2][]byte `json:"halves"` // SHA-256
	Expires time.Time `json:"expires"`
}

func (i *invitation) open(now time.Time) bool { return i != nil && now.Before(i.Expires) }

// Invitation is what is told of an invitation. Half is shown this once.
type Invitation struct {
	Person
	Half    string
	Expires time.Time
}

// NewHalf draws one half of an invitation's code, of 80 random bits.
func NewHalf() string {
	var raw [10]byte
	_, _ = rand.Read(raw[:]) // never fails
	return base32.StdEncoding.EncodeToString(raw[:])
}

// HalfDigest is what is sent, and kept, of a half.
func HalfDigest(half string) []byte {
	d := sha256.Sum256([]byte(strings.ToUpper(strings.TrimSpace(half))))
	return d[:]
}

// invite makes an invitation of which the asker has drawn one half.
func (g *Registry) invite(asker []byte) (half string, i *invitation, err error) {
	if len(asker) != sha256.Size {
		return "", nil, fault.New(fault.BadRequest, "half: is not the SHA-256 of the half that you keep; trikey admin create draws one")
	}
	half = NewHalf()
	return half, &invitation{Halves: [2][]byte{asker, HalfDigest(half)}, Expires: g.now().UTC().Add(InviteLife)}, nil
}

// Invite adds a person, who is to enrol. asker is HalfDigest of the asker's half.
func (g *Registry) Invite(ctx context.Context, name string, role Role, asker []byte) (Invitation, error) {
	if !personName.MatchString(name) {
		return Invitation{}, fault.New(fault.BadRequest, "name: %q is not a letter followed by at most 63 letters, digits, dots, dashes or underscores", name)
	}
	half, i, err := g.invite(asker)
	if err != nil {
		return Invitation{}, err
	}
	p := Person{Name: name, Role: role, State: Invited, Created: g.now().UTC(), Invite: i}
	content, err := record.JSON(p)
	if err != nil {
		return Invitation{}, err
	}
	for {
		_, err := g.keep.Apply(ctx, record.Create(personPrefix+name, content))
		switch {
		case errors.Is(err, record.ErrRotated):
			continue
		case errors.Is(err, keystore.ErrConflict):
			return Invitation{}, fault.New(fault.Conflict, "name: there is a person %q already; a person has one role, and a name one person", name)
		}
		return Invitation{Person: p, Half: half, Expires: i.Expires}, err
	}
}

// Reset has a person enrol anew, with a new password and new codes; the old ones, and the
// sessions, end.
func (g *Registry) Reset(ctx context.Context, name string, asker []byte) (Invitation, error) {
	half, i, err := g.invite(asker)
	if err != nil {
		return Invitation{}, err
	}
	p, err := g.update(ctx, name, func(p *Person) error {
		if p.State == Disabled {
			return fault.New(fault.Conflict, "%s is disabled, for good; invite them under another name", p.Name)
		}
		p.State, p.Invite = Invited, i
		p.Credentials++
		return nil
	})
	if err == nil {
		g.endSessionsOf(name)
	}
	return Invitation{Person: p, Half: half, Expires: i.Expires}, err
}

// issuer is the service in a person's authenticator.
const issuer = "Trikey"

// Enrol takes an invitation up: the person gets a password, and a secret for codes, which
// is returned as an otpauth URI. The halves may come in any order.
func (g *Registry) Enrol(ctx context.Context, name string, halves [2]string, password *secret.Bytes, from netip.Addr) (uri string, err error) {
	if err := g.failures.locked(name, from, g.now()); err != nil {
		return "", err
	}
	if err := checkPassword(name, password); err != nil {
		return "", err
	}
	if p, err := g.Find(ctx, name); err != nil || !p.accepts(halves, g.now()) {
		if err != nil && !errors.Is(err, fault.NotFound) {
			return "", err
		}
		return "", g.failures.failed(name, from, g.now(), errInvitation)
	}
	hash, err := g.hash(ctx, password)
	if err != nil {
		return "", err
	}
	raw := make([]byte, 20) // RFC 4226, section 4, R6: 160 bits
	_, _ = rand.Read(raw)   // never fails
	key, err := totp.Generate(totp.GenerateOpts{Issuer: issuer, AccountName: name, Secret: raw})
	if err != nil {
		return "", err
	}
	_, err = g.change(ctx, name, func(p *Person) (map[string][]byte, error) {
		if !p.accepts(halves, g.now()) {
			return nil, errInvitation
		}
		p.State, p.Invite, p.Step = Active, nil, 0
		p.Credentials++
		return map[string][]byte{passwordPrefix: []byte(hash), totpPrefix: raw}, nil
	})
	clear(raw)
	return key.URL(), err
}

var errInvitation = fault.New(fault.Unauthorized, "there is no such invitation: the name or the code is wrong, or it was taken up, or is older than a day; "+
	"ask for a new one (trikey admin reset NAME)")

// accepts reports whether halves are those of the person's open invitation.
func (p *Person) accepts(halves [2]string, now time.Time) bool {
	if p.State != Invited || !p.Invite.open(now) {
		return false
	}
	same := func(half string, i int) int { return subtle.ConstantTimeCompare(HalfDigest(half), p.Invite.Halves[i]) }
	straight := same(halves[0], 0) & same(halves[1], 1)
	crossed := same(halves[0], 1) & same(halves[1], 0)
	return straight|crossed == 1
}
