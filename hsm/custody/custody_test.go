package custody_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/custody"
	"github.com/trikey/trikey/hsm/hsmtest"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/hsm/p11/softhsm"
	"github.com/trikey/trikey/hsm/soft"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// site is a desk with three cards. What the command's tests show from outside is not
// shown here again.
type site struct {
	t     *testing.T
	cfg   custody.Config
	desk  *custody.Desk
	cards []hsm.CardID
	pin   *secret.Bytes
}

func newSite(t *testing.T) *site {
	t.Helper()
	module, err := softhsm.NewReader(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t}
	if s.pin, err = softhsm.NewPIN(8); err != nil {
		t.Fatal(err)
	}
	for _, label := range []string{"a", "b", "c"} {
		id, err := softhsm.NewToken(module, label, s.pin)
		if err != nil {
			t.Fatal(err)
		}
		s.cards = append(s.cards, id)
	}
	chip := hsmtest.NewChip(t)
	engine := soft.New(soft.Config{Chip: chip, Region: "eu"})
	t.Cleanup(func() { _ = engine.Close() })
	reader := p11.NewReader(p11.ReaderConfig{Modules: []p11.ModuleConfig{module}})
	s.cfg = custody.Config{Dir: t.TempDir(), Region: "eu", Reader: reader, Engine: engine, Chip: chip}
	s.restart()
	return s
}

func (s *site) restart() {
	s.t.Helper()
	desk, err := custody.New(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.desk = desk
	s.t.Cleanup(func() { _ = desk.Close() })
}

func (s *site) state() hsm.Status {
	s.t.Helper()
	status, err := s.desk.Status(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return status
}

type step = func(context.Context, hsm.CardID, *secret.Bytes) (hsm.Progress, error)

func (s *site) all(do step) (p hsm.Progress) {
	s.t.Helper()
	for _, c := range s.cards {
		var err error
		if p, err = do(s.t.Context(), c, s.pin); err != nil {
			s.t.Fatal(err)
		}
	}
	return p
}

func (s *site) begin() hsm.Progress {
	s.t.Helper()
	p, err := s.desk.Begin(s.t.Context(), hsm.Plan{Kind: hsm.Init, Shares: 3, Threshold: 3})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (s *site) init() hsm.Report {
	s.t.Helper()
	s.begin()
	s.all(s.desk.Deal)
	record, err := s.desk.Commit(s.t.Context(), s.all(s.desk.Verify).KCV)
	if err != nil {
		s.t.Fatal(err)
	}
	return record
}

// objects counts what is on the cards.
func (s *site) objects() (n int) {
	s.t.Helper()
	for _, id := range s.cards {
		card, err := s.cfg.Reader.Login(s.t.Context(), id, s.pin)
		if err != nil {
			s.t.Fatal(err)
		}
		values, err := card.Objects(s.t.Context())
		if err = errors.Join(err, card.Close()); err != nil {
			s.t.Fatal(err)
		}
		n += len(values)
	}
	return n
}

// The steps of a ceremony come in their order, and only while one is under way.
func TestOrder(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	for name, do := range map[string]step{"deal": s.desk.Deal, "verify": s.desk.Verify} {
		if _, err := do(ctx, s.cards[0], s.pin); !errors.Is(err, fault.NoCeremony) {
			t.Errorf("%s without a ceremony: %v", name, err)
		}
	}
	for _, plan := range []hsm.Plan{{}, {Shares: 1, Threshold: 1}, {Shares: 2, Threshold: 3}, {Shares: 3, Threshold: 1}, {Shares: 17, Threshold: 3}, {Shares: -1, Threshold: -1}} {
		plan.Kind = hsm.Init
		if _, err := s.desk.Begin(ctx, plan); !errors.Is(err, fault.BadRequest) {
			t.Errorf("%+v: %v", plan, err)
		}
	}
	s.begin()
	if _, err := s.desk.Begin(ctx, hsm.Plan{Kind: hsm.Init, Shares: 3, Threshold: 3}); !errors.Is(err, fault.Conflict) {
		t.Errorf("a second ceremony: %v", err)
	}
	if _, err := s.desk.Verify(ctx, s.cards[0], s.pin); !errors.Is(err, fault.Conflict) {
		t.Errorf("verify before all are dealt: %v", err)
	}
	s.all(s.desk.Deal)
	if _, err := s.desk.Commit(ctx, s.state().KCV); !errors.Is(err, fault.Conflict) {
		t.Errorf("commit before all are verified: %v", err)
	}
	p := s.all(s.desk.Verify)
	if _, err := s.desk.Commit(ctx, "cmac-aes:000000"); !errors.Is(err, fault.BadRequest) {
		t.Errorf("commit of another check value: %v", err)
	}
	if s.state().State != hsm.Blank {
		t.Error("it counts before it is committed")
	}
	record, err := s.desk.Commit(ctx, p.KCV)
	if err != nil || record.KCV != p.KCV || s.state().State != hsm.Closed {
		t.Errorf("%+v, %v", record, err)
	}
}

// An aborted ceremony leaves no share, and another can begin.
func TestAbort(t *testing.T) {
	s := newSite(t)
	s.begin()
	s.all(s.desk.Deal)
	if n := s.objects(); n != 3 {
		t.Fatalf("%d objects are on the cards", n)
	}
	if err := errors.Join(s.desk.Abort(t.Context()), s.desk.Abort(t.Context())); err != nil {
		t.Error(err)
	}
	if n := s.objects(); n != 0 || s.state().State != hsm.Blank {
		t.Errorf("%d objects are left", n)
	}
	s.init()
}

// A crash between dealing and committing: the next ceremony clears up.
func TestCrash(t *testing.T) {
	s := newSite(t)
	s.begin()
	s.all(s.desk.Deal)
	s.restart() // what was in memory is lost
	if s.state().State != hsm.Blank {
		t.Error("a ceremony that was not committed counts")
	}
	s.init()
	if n := s.objects(); n != 3 {
		t.Errorf("%d objects are on three cards", n)
	}
	for _, c := range s.cards {
		if _, err := s.desk.Present(t.Context(), c, s.pin); err != nil {
			t.Error(err)
		}
	}
	if s.state().State != hsm.Open {
		t.Error("the cards do not open the machine")
	}
}

// Cards that wait too long for the others are forgotten.
func TestPatience(t *testing.T) {
	s := newSite(t)
	s.init()
	s.cfg.Patience = 50 * time.Millisecond
	s.restart()
	_, before := secret.Usage()
	if _, err := s.desk.Present(t.Context(), s.cards[0], s.pin); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); s.state().State != hsm.Closed; {
		if time.Now().After(deadline) {
			t.Fatal("a card was not forgotten")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if _, after := secret.Usage(); after != before {
		t.Errorf("%d bytes of a forgotten card are in memory", after-before)
	}
}

// The machine's record decides: a damaged one is refused, and so is another region.
func TestRecord(t *testing.T) {
	s := newSite(t)
	s.init()
	elsewhere := s.cfg
	elsewhere.Region = "us"
	if _, err := custody.New(elsewhere); !errors.Is(err, fault.BadConfig) {
		t.Errorf("another region: %v", err)
	}
	path := filepath.Join(s.cfg.Dir, "machine.json")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"cut": string(whole[:len(whole)/2]), "empty": "", "other": "{}", "unknown field": `{"x":1}`} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := custody.New(s.cfg); !errors.Is(err, fault.RecordDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// When the service cannot start, the card's owner is told why, and the machine is open.
func TestOpened(t *testing.T) {
	s := newSite(t)
	s.init()
	s.cfg.Service = damagedStore{}
	s.restart()
	var err error
	for _, c := range s.cards {
		_, err = s.desk.Present(t.Context(), c, s.pin)
	}
	if !errors.Is(err, fault.RecordDamaged) || s.state().State != hsm.Open {
		t.Errorf("%v, %v", err, s.state().State)
	}
}

// damagedStore is a service whose store does not load.
type damagedStore struct{ custody.Service }

func (damagedStore) Load(context.Context) error { return fault.New(fault.RecordDamaged, "record x") }

func (damagedStore) Root(context.Context) (hsm.ID, error) { return hsm.ID{}, nil }

func (damagedStore) Unload() {}
