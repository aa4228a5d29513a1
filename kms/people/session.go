package people

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"time"

	"github.com/trikey/trikey/internal/fault"
)

// How long sessions last.
const (
	SessionLife = 2 * time.Hour    // at most
	SessionIdle = 15 * time.Minute // unused

	maxSessions = 8 // of a person
)

// tokenPrefix tells a session's token from other secrets, for people and for scanners.
const tokenPrefix = "tks_"

type tokenDigest = [sha256.Size]byte

// Session is a person who is logged in.
type Session struct {
	Person
	Expires time.Time // at the latest
	Code    time.Time // when the person last gave a code

	digest  tokenDigest
	checked time.Time
}

// Fresh reports whether the person had given a code a short time before the session was
// checked.
func (s Session) Fresh() bool { return s.checked.Sub(s.Code) < StepUpLife }

// session is what is kept of a session: not the token.
type session struct {
	name              string
	credentials       uint32
	begun, used, code time.Time
	tries             int // codes since one was right
}

func (s *session) over(now time.Time) bool {
	return now.Sub(s.begun) >= SessionLife || now.Sub(s.used) >= SessionIdle
}

// begin begins a session, with a code that was given or without.
func (g *Registry) begin(p Person, withCode bool) (token string, s Session) {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails
	token = tokenPrefix + base64.RawURLEncoding.EncodeToString(raw[:])
	digest := sha256.Sum256([]byte(token))
	now := g.now()
	var code time.Time
	if withCode {
		code = now
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var oldest tokenDigest
	own := 0
	for d, other := range g.sessions {
		if other.over(now) {
			delete(g.sessions, d)
			continue
		}
		if other.name == p.Name {
			if own++; own == 1 || other.begun.Before(g.sessions[oldest].begun) {
				oldest = d
			}
		}
	}
	if own >= maxSessions {
		delete(g.sessions, oldest)
	}
	g.sessions[digest] = &session{name: p.Name, credentials: p.Credentials, begun: now, used: now, code: code}
	return token, Session{Person: p, Expires: now.Add(SessionLife), Code: code, digest: digest, checked: now}
}

var errSession = fault.New(fault.Unauthorized, "you are not logged in, or your session has ended; log in (trikey login)")

// Session returns the session of a token. It is the one place where a session is checked.
func (g *Registry) Session(ctx context.Context, token string) (Session, error) {
	digest := sha256.Sum256([]byte(token))
	now := g.now()
	g.mu.Lock()
	kept := g.sessions[digest] // found by digest: how long that takes tells nothing of tokens
	if kept == nil || kept.over(now) {
		delete(g.sessions, digest)
		g.mu.Unlock()
		return Session{}, errSession
	}
	kept.used = now
	s := Session{Expires: kept.begun.Add(SessionLife), Code: kept.code, digest: digest, checked: now}
	name, credentials := kept.name, kept.credentials
	g.mu.Unlock()
	p, err := g.Find(ctx, name)
	if err != nil && !errors.Is(err, fault.NotFound) {
		return Session{}, err
	}
	if err != nil || p.State != Active || p.Credentials != credentials {
		g.endSessionsOf(name)
		return Session{}, errSession
	}
	s.Person = p
	return s, nil
}

// tryCode counts a code that a session is about to try, and ends a session that tries too
// many, from whatever addresses: it was stolen.
func (g *Registry) tryCode(s Session) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	kept := g.sessions[s.digest]
	if kept == nil {
		return errSession
	}
	if kept.tries++; kept.tries > maxFailures {
		delete(g.sessions, s.digest)
		return errSession
	}
	return nil
}

// stepped notes a code that was given.
func (g *Registry) stepped(s Session) Session {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.Code = g.now()
	if kept := g.sessions[s.digest]; kept != nil {
		kept.code, kept.tries = s.Code, 0
	}
	return s
}

// End ends a session.
func (g *Registry) End(s Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.sessions, s.digest)
}

// EndAll ends every session.
func (g *Registry) EndAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.sessions)
}

func (g *Registry) endSessionsOf(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for d, s := range g.sessions {
		if s.name == name {
			delete(g.sessions, d)
		}
	}
}
