package people_test

import (
	"encoding/base32"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pquerna/otp/hotp"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/kms"
	"github.com/trikey/trikey/kms/people"
)

var office = netip.MustParseAddr("192.0.2.7")

// site is nodes that share a store, with a clock that the test sets.
type site struct {
	t       *testing.T
	machine hsm.Engine
	store   keystore.Store
	clock   atomic.Int64 // seconds
}

func newSite(t *testing.T) *site {
	t.Helper()
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	s := &site{t: t, machine: hsmtest.Open(t), store: store}
	s.clock.Store(2_000_000_000)
	return s
}

func (s *site) pass(d time.Duration) { s.clock.Add(int64(d / time.Second)) }

func (s *site) now() time.Time { return time.Unix(s.clock.Load(), 0) }

func (s *site) node() *people.Registry {
	s.t.Helper()
	service := kms.New(kms.Config{Machine: s.machine, Store: s.store, Now: s.now})
	s.t.Cleanup(func() { _ = service.Close() })
	if err := service.Load(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	g, err := service.People()
	if err != nil {
		s.t.Fatal(err)
	}
	return g
}

func password(t *testing.T, text string) *secret.Bytes {
	t.Helper()
	b, err := secret.Move([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Wipe)
	return b
}

const phrase = "several words in a row"

// enrolled adds a person, and returns the secret of their codes in base32.
func (s *site) enrolled(g *people.Registry, name string) string {
	s.t.Helper()
	half := people.NewHalf()
	i, err := g.Invite(s.t.Context(), name, people.Admin, people.HalfDigest(half))
	if err != nil {
		s.t.Fatal(err)
	}
	uri, err := g.Enrol(s.t.Context(), name, [2]string{i.Half, half}, password(s.t, phrase), office)
	if err != nil {
		s.t.Fatal(err)
	}
	u, err := url.Parse(uri)
	if err != nil {
		s.t.Fatal(err)
	}
	return u.Query().Get("secret")
}

func (s *site) code(key string, steps int) string {
	s.t.Helper()
	c, err := hotp.GenerateCode(key, uint64(s.clock.Load()/30+int64(steps)))
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// A code is taken once, on whatever node and however many try at a time; the one of a step
// before and after the clock's too, and no other.
func TestCodesOnce(t *testing.T) {
	s := newSite(t)
	nodes := []*people.Registry{s.node(), s.node()}
	key := s.enrolled(nodes[0], "ann")
	var wg sync.WaitGroup
	var in atomic.Int32
	for i := range 4 {
		wg.Go(func() {
			_, _, err := nodes[i%2].Login(t.Context(), "ann", password(t, phrase), s.code(key, 0), office)
			if err == nil {
				in.Add(1)
			} else if !errors.Is(err, fault.Unauthorized) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if in.Load() != 1 {
		t.Errorf("one code let %d in", in.Load())
	}
	for steps, want := range map[int]bool{-2: false, 2: false, 1: true, -1: false} { // -1 is older than what was used
		g := s.node() // with no failures counted
		_, _, err := g.Login(t.Context(), "ann", password(t, phrase), s.code(key, steps), office)
		if (err == nil) != want {
			t.Errorf("%d steps off: %v", steps, err)
		}
	}
}

// A session ends when it is not used, at its end, on another node's word, and with the
// password.
func TestSessionEnds(t *testing.T) {
	s := newSite(t)
	g, other := s.node(), s.node()
	key := s.enrolled(g, "ann")
	login := func() string {
		t.Helper()
		s.pass(time.Minute)
		token, _, err := g.Login(t.Context(), "ann", password(t, phrase), s.code(key, 0), office)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	ended := func(token, why string) {
		t.Helper()
		if _, err := g.Session(t.Context(), token); !errors.Is(err, fault.Unauthorized) {
			t.Errorf("%s: %v", why, err)
		}
	}
	token := login()
	if _, err := other.Session(t.Context(), token); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("a session of another node: %v", err)
	}
	s.pass(people.SessionIdle)
	ended(token, "unused")

	token = login()
	for range int(people.SessionLife / (10 * time.Minute)) {
		if _, err := g.Session(t.Context(), token); err != nil {
			t.Fatal(err)
		}
		s.pass(10 * time.Minute)
	}
	ended(token, "too old")

	token = login()
	s.pass(4 * time.Minute)
	current, err := g.Session(t.Context(), token)
	if err != nil || !current.Fresh() {
		t.Fatalf("after four minutes: %v, %v", current.Fresh(), err)
	}
	s.pass(time.Minute)
	if current, err = g.Session(t.Context(), token); err != nil || current.Fresh() {
		t.Errorf("after five minutes a code counts still: %v", err)
	}
	if _, err := g.StepUp(t.Context(), current, "000000", office); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("a wrong code: %v", err)
	}
	if _, err := g.StepUp(t.Context(), current, s.code(key, 0), office); err != nil {
		t.Error(err)
	}
	if current, err = g.Session(t.Context(), token); err != nil || !current.Fresh() {
		t.Errorf("after another code: %v", err)
	}
	s.pass(time.Minute)
	if err := g.ChangePassword(t.Context(), current, password(t, phrase), password(t, phrase+" 2"), s.code(key, 0), office); err != nil {
		t.Fatal(err)
	}
	ended(token, "of the password before")
	if _, err := other.Disable(t.Context(), "ann"); err != nil {
		t.Fatal(err)
	}
	s.pass(time.Minute)
	if _, _, err := g.Login(t.Context(), "ann", password(t, phrase+" 2"), s.code(key, 0), office); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("who is disabled logs in: %v", err)
	}
}

// Five failures lock out for a quarter of an hour, at that address and under that name.
func TestLockout(t *testing.T) {
	s := newSite(t)
	g := s.node()
	key := s.enrolled(g, "ann")
	try := func(from netip.Addr) error {
		_, _, err := g.Login(t.Context(), "ann", password(t, phrase), s.code(key, 0), from)
		return err
	}
	for i := range 5 {
		if _, _, err := g.Login(t.Context(), "ann", password(t, fmt.Sprint("wrong password ", i)), s.code(key, 0), office); !errors.Is(err, fault.Unauthorized) {
			t.Fatal(err)
		}
	}
	if err := try(netip.MustParseAddr("::ffff:192.0.2.7")); !errors.Is(err, fault.LockedOut) {
		t.Errorf("the address as IPv6: %v", err)
	}
	if err := try(office); fault.RetryAfterOf(err) != 15*time.Minute {
		t.Errorf("locked: %v", err)
	}
	if err := try(netip.MustParseAddr("192.0.2.8")); err != nil {
		t.Errorf("elsewhere: %v", err)
	}
	s.pass(15 * time.Minute)
	if err := try(office); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// An invitation needs both halves, is taken up once, and ends; a reset ends what was.
func TestInvitation(t *testing.T) {
	s := newSite(t)
	g := s.node()
	half := people.NewHalf()
	i, err := g.Invite(t.Context(), "ann", people.Officer, people.HalfDigest(half))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Invite(t.Context(), "ann", people.Admin, people.HalfDigest(half)); !errors.Is(err, fault.Conflict) {
		t.Errorf("one person, two roles: %v", err)
	}
	enrol := func(halves [2]string) error {
		_, err := g.Enrol(t.Context(), "ann", halves, password(t, phrase), office)
		return err
	}
	for _, halves := range [][2]string{{half, half}, {i.Half, i.Half}, {half, ""}, {"", i.Half}} {
		if err := enrol(halves); !errors.Is(err, fault.Unauthorized) {
			t.Errorf("%d letters: %v", len(halves[0]+halves[1]), err)
		}
	}
	s.pass(people.InviteLife)
	if err := enrol([2]string{half, i.Half}); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("a day later: %v", err)
	}
	if i, err = g.Reset(t.Context(), "ann", people.HalfDigest(half)); err != nil {
		t.Fatal(err)
	}
	if err := enrol([2]string{half, i.Half}); err != nil {
		t.Error(err)
	}
	if err := enrol([2]string{half, i.Half}); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("twice: %v", err)
	}
	for name, bad := range map[string]string{"bob": "short", "carl": "aaaaaaaaaaaaaaa", "dora": "several words \xff in a row", "Bartholomew": "bartholomew1"} {
		i, err := g.Invite(t.Context(), name, people.Auditor, people.HalfDigest(half))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Enrol(t.Context(), name, [2]string{half, i.Half}, password(t, bad), office); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Of a flood of logins most are turned away, and it locks nobody else out.
func TestFlood(t *testing.T) {
	s := newSite(t)
	g := s.node()
	key := s.enrolled(g, "ann")
	if _, err := base32.StdEncoding.DecodeString(key); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var busy atomic.Int32
	for i := range 60 {
		wg.Go(func() {
			_, _, err := g.Login(t.Context(), fmt.Sprint("stranger", i), password(t, phrase), "000000", office)
			if errors.Is(err, fault.Unavailable) {
				busy.Add(1)
			} else if !errors.Is(err, fault.Unauthorized) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if busy.Load() == 0 {
		t.Error("sixty hashes were computed at a time")
	}
	if _, _, err := g.Login(t.Context(), "ann", password(t, phrase), s.code(key, 0), office); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// The cost of a login by somebody, and by nobody: to be compared, not asserted.
func BenchmarkLogin(b *testing.B) {
	for _, name := range []string{"ann", "nobody"} {
		b.Run(name, func(b *testing.B) {
			store, err := bolt.Open(bolt.Config{Path: filepath.Join(b.TempDir(), "store.db")})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = store.Close() })
			service := kms.New(kms.Config{Machine: hsmtest.Open(b), Store: store})
			b.Cleanup(func() { _ = service.Close() })
			if err := service.Load(b.Context()); err != nil {
				b.Fatal(err)
			}
			g, _ := service.People()
			half := people.NewHalf()
			i, err := g.Invite(b.Context(), "ann", people.Admin, people.HalfDigest(half))
			if err != nil {
				b.Fatal(err)
			}
			good, _ := secret.Move([]byte(phrase))
			defer good.Wipe()
			if _, err := g.Enrol(b.Context(), "ann", [2]string{half, i.Half}, good, office); err != nil {
				b.Fatal(err)
			}
			bad, _ := secret.Move([]byte("several other words"))
			defer bad.Wipe()
			n := 0
			for b.Loop() {
				n++ // from ever another address, so that nobody is locked out
				from := netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
				if _, _, err := g.Login(b.Context(), name, bad, "wrong", from); !errors.Is(err, fault.Unauthorized) {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestLoginTiming reports how long a login takes that is refused, of a name that somebody
// has and of one that nobody has, and asserts nothing about time. It does assert that the
// same memory is filled: that is what Argon2id costs, and what a guesser could feel.
func TestLoginTiming(t *testing.T) {
	s := newSite(t)
	s.enrolled(s.node(), "ann")
	const rounds = 6
	names := []string{"ann", "bob", "no name at all"}
	took, filled := make([][]time.Duration, len(names)), make([]uint64, len(names))
	for range rounds {
		for i, name := range names {
			g, wrong := s.node(), password(t, "quite other words here") // a node with no failures counted
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, _, err := g.Login(t.Context(), name, wrong, "000000", office)
			took[i] = append(took[i], time.Since(start))
			runtime.ReadMemStats(&after)
			filled[i] += after.TotalAlloc - before.TotalAlloc
			if !errors.Is(err, fault.Unauthorized) {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	for i, name := range names {
		slices.Sort(took[i])
		t.Logf("%-16q median %v (quartiles %v to %v), %d KiB filled", name, took[i][rounds/2], took[i][rounds/4], took[i][rounds*3/4], filled[i]/rounds>>10)
		if filled[i]/rounds < 64<<20 || filled[i]*100 > filled[0]*101 || filled[i]*101 < filled[0]*100 {
			t.Errorf("%q fills %d bytes, %q %d", name, filled[i]/rounds, names[0], filled[0]/rounds)
		}
	}
}
