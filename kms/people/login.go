package people

import (
	"context"
	"encoding/base32"
	"errors"
	"net/netip"
	"time"

	"github.com/pquerna/otp/hotp"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/keystore"
)

// Codes are those of RFC 6238: a new one each 30 seconds. One step to each side is
// accepted (section 5.2), for clocks that differ.
const (
	codeStep  = 30 // seconds
	codeDrift = 1
)

// errLogin is the same for a name that nobody has, a password that is wrong, a code that is
// wrong or was used, and a person who is disabled.
var errLogin = fault.New(fault.Unauthorized, "the name, password or code is not valid; each code is valid once, so after a mistake wait for the next one")

// Login lets a person in who knows the password and has a code, and returns the token of
// their session, which is shown this once.
func (g *Registry) Login(ctx context.Context, name string, password *secret.Bytes, code string, from netip.Addr) (token string, s Session, err error) {
	p, err := g.verify(ctx, name, password, code, from)
	if err != nil {
		return "", Session{}, err
	}
	token, s = g.begin(p, true)
	return token, s, nil
}

// verify checks a person's password and code. It costs the same where there is nobody.
func (g *Registry) verify(ctx context.Context, name string, password *secret.Bytes, code string, from netip.Addr) (Person, error) {
	if err := g.failures.locked(name, from, g.now()); err != nil {
		return Person{}, err
	}
	hash, err := g.passwordOf(ctx, name)
	if err != nil {
		return Person{}, err
	}
	right, err := g.matches(ctx, hash, password)
	if err != nil {
		return Person{}, err
	}
	step, err := g.stepOf(ctx, name, code)
	if err != nil {
		return Person{}, err
	}
	if right && step == 0 {
		_ = g.failures.failed(name, everywhere, g.now(), errLogin)
	}
	if !right || step == 0 {
		return Person{}, g.failures.failed(name, from, g.now(), errLogin)
	}
	p, err := g.useCode(ctx, name, step)
	if errors.Is(err, errLogin) {
		return p, g.failures.failed(name, from, g.now(), errLogin)
	}
	if err == nil {
		g.failures.clear(name, from)
	}
	return p, err
}

// useCode has a code's step count as used. On whatever node it is given again, it is not
// valid any more.
func (g *Registry) useCode(ctx context.Context, name string, step uint64) (Person, error) {
	return g.update(ctx, name, func(p *Person) error {
		if p.State != Active || step <= p.Step {
			return errLogin
		}
		p.Step = step
		return nil
	})
}

func (g *Registry) passwordOf(ctx context.Context, name string) (string, error) {
	r, err := g.keep.Get(ctx, passwordPrefix+plain(name))
	if errors.Is(err, keystore.ErrNotFound) {
		return "", nil
	}
	return string(r.Content), err
}

// plain is a name, or where nobody can have that name, one that nobody has.
func plain(name string) string {
	if personName.MatchString(name) {
		return name
	}
	return "-"
}

// stepOf returns the time step whose code this is, 0 when there is none near now.
func (g *Registry) stepOf(ctx context.Context, name, code string) (uint64, error) {
	r, err := g.keep.Get(ctx, totpPrefix+plain(name))
	known := err == nil
	if err != nil && !errors.Is(err, keystore.ErrNotFound) {
		return 0, err
	}
	if !known {
		r.Content = make([]byte, 20)
	}
	key := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(r.Content)
	clear(r.Content)
	at := uint64(g.now().Unix()) / codeStep
	var found uint64
	for step := at - codeDrift; step <= at+codeDrift; step++ {
		if hotp.Validate(code, step, key) && known { // compares in constant time
			found = step
		}
	}
	return found, nil
}

// StepUp notes that the person of a session has just given a code, for what is sensitive.
func (g *Registry) StepUp(ctx context.Context, s Session, code string, from netip.Addr) (Session, error) {
	if err := g.failures.locked(s.Name, from, g.now()); err != nil {
		return s, err
	}
	if err := g.tryCode(s); err != nil {
		return s, err
	}
	step, err := g.stepOf(ctx, s.Name, code)
	if err == nil && step != 0 {
		_, err = g.useCode(ctx, s.Name, step)
	} else if err == nil {
		err = errLogin
	}
	if errors.Is(err, errLogin) {
		return s, g.failures.failed(s.Name, from, g.now(), fault.New(fault.Unauthorized, "the code is not valid; each is valid once, so wait for the next one"))
	}
	if err != nil {
		return s, err
	}
	g.failures.clear(s.Name, from)
	return g.stepped(s), nil
}

// ChangePassword gives the person of a session another password, and ends their sessions.
func (g *Registry) ChangePassword(ctx context.Context, s Session, old, next *secret.Bytes, code string, from netip.Addr) error {
	if err := checkPassword(s.Name, next); err != nil {
		return err
	}
	if old.Equal(next) {
		return fault.New(fault.BadRequest, "password: is the one that you have")
	}
	if _, err := g.verify(ctx, s.Name, old, code, from); err != nil {
		return err
	}
	hash, err := g.hash(ctx, next)
	if err != nil {
		return err
	}
	_, err = g.change(ctx, s.Name, func(p *Person) (map[string][]byte, error) {
		if p.State != Active {
			return nil, errLogin
		}
		p.Credentials++
		return map[string][]byte{passwordPrefix: []byte(hash)}, nil
	})
	if err == nil {
		g.endSessionsOf(s.Name)
	}
	return err
}

// StepUpLife is how long a code counts for what is sensitive.
const StepUpLife = 5 * time.Minute
