package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/internal/unixsock"
)

// fullStatus is what machine status tells in JSON.
type fullStatus struct {
	State      string
	KCV        string
	Generation uint32
	SplitID    string `json:"split_id"`
	RootID     string `json:"root_id"`
	Shares     int
	Cards      []hsm.CardRecord
}

func (s *site) status() (st fullStatus) {
	s.t.Helper()
	s.ok("machine", "status", "-o", "json").json(s.t, &st)
	return st
}

// ceremony runs a ceremony with all the cards of these PIN files.
func (s *site) ceremony(kind string, pins []string, more ...string) result {
	s.t.Helper()
	return s.run(append(append([]string{"machine", kind, "-o", "json"}, more...), s.pins(pins...)...)...)
}

// allCards are the PIN files of the site's cards.
func (s *site) allCards() []string { return []string{"1", "2", "3"} }

// blank makes the machine of the site blank, with empty cards in the place of the first
// three.
func (s *site) blank() {
	s.t.Helper()
	if err := os.RemoveAll(s.path("data")); err != nil {
		s.t.Fatal(err)
	}
	for _, name := range s.allCards() {
		s.newCard(name)
	}
}

// objects counts what is on a card.
func (s *site) objects(pinFile string) (n int) {
	s.t.Helper()
	s.withCard(pinFile, func(ctx context.Context, card hsm.Card) error {
		objects, err := card.Objects(ctx)
		n = len(objects)
		return err
	})
	return n
}

// eraseCard removes what is on a card.
func (s *site) eraseCard(pinFile string) {
	s.t.Helper()
	s.withCard(pinFile, func(ctx context.Context, card hsm.Card) error {
		objects, err := card.Objects(ctx)
		for _, o := range objects {
			err = errors.Join(err, card.Remove(ctx, o))
		}
		return err
	})
}

// keyed opens a site and makes key 7 and an app.
func (s *site) keyed() {
	s.t.Helper()
	s.open()
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)
}

// opens reports whether the service opens a ciphertext.
func (s *site) opens(ciphertext, want string) {
	s.t.Helper()
	a := s.post("/v1/keys/7/decrypt", object{"ciphertext": ciphertext})
	if a.status != 200 || a.text("plaintext") != want {
		s.t.Errorf("decrypt: %d %s", a.status, a.raw)
	}
}

// killedAt runs a ceremony with a service that dies at a failpoint, and starts it anew.
// It reports whether the point was reached.
func (s *site) killedAt(point, kind string, pins []string, more ...string) bool {
	s.t.Helper()
	s.kill()
	s.startBinary(trikeyFailpoint, "TRIKEY_FAILPOINT="+point+"=kill")
	if kind != "init" {
		if r := s.unseal(pins...); r.code != 0 {
			s.t.Fatalf("%s: before the ceremony: %+v", point, r)
		}
	}
	r := s.ceremony(kind, pins, more...)
	died := false
	if r.code != 0 { // because the machine died; that is told to this process a little later
		select {
		case <-s.exited:
			died = true
		case <-time.After(30 * time.Second):
			s.t.Errorf("%s at %s: %+v", kind, point, r)
		}
	}
	s.kill()
	s.start()
	return died
}

// The machine dies at every step of init: it is blank then, or its cards open it, and
// the ceremony can be held again on the same cards.
func TestInitKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, point := range []string{
		"before-store-1", "after-store-1", "dealt-1", "after-store-2", "dealt-3", "verified-1", "verified-3", "commit", "recorded",
	} {
		s.kill()
		if err := os.RemoveAll(s.path("data")); err != nil {
			t.Fatal(err)
		}
		for _, card := range s.allCards() {
			s.eraseCard(card)
		}
		if !s.killedAt(point, "init", s.allCards()) {
			t.Errorf("init never came to %s", point)
		}
		switch state := s.status().State; {
		case point == "recorded" && state == "sealed":
		case point != "recorded" && state == "blank":
			if r := s.ceremony("init", s.allCards()); r.code != 0 {
				t.Fatalf("init after a death at %s: %+v", point, r)
			}
		default:
			t.Fatalf("after a death at %s the machine is %s", point, state)
		}
		if r := s.unseal(s.allCards()...); r.code != 0 {
			t.Errorf("after a death at %s: %+v", point, r)
		}
	}
}

// The machine dies at every step of the ceremonies that deal anew: what it held opens
// afterwards, with the cards before or with the new shares, never with neither.
func TestDealingKilled(t *testing.T) {
	t.Parallel()
	common := []string{
		"gathered-1", "gathered-3", "before-store-1", "after-store-1", "dealt-2", "after-store-3", "verified-2", "verified-3", "commit",
	}
	for kind, points := range map[string][]string{
		"resplit":     append(common, "resplit-recorded", "recorded", "cleared"),
		"rotate-root": append(common, "rotation-written", "copying", "switched", "recorded", "cleared"),
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.keyed()
			sealed := s.encrypt("7", []byte("text"), nil)
			for _, point := range points {
				before := s.status()
				if !s.killedAt(point, kind, s.allCards()) {
					t.Errorf("%s never came to %s", kind, point)
				}
				if r := s.unseal(s.allCards()...); r.code != 0 {
					t.Fatalf("after a death at %s: %+v", point, r)
				}
				s.opens(sealed, "dGV4dA==")
				after := s.status()
				counts := point == "recorded" || point == "cleared" || point == "switched"
				if changed := after.SplitID != before.SplitID; changed != counts {
					t.Errorf("after a death at %s the split changed: %v", point, changed)
				}
				if r := s.ceremony("verify-cards", s.allCards()); r.code != 0 {
					t.Errorf("after a death at %s: %+v", point, r)
				}
			}
			if r := s.ceremony(kind, s.allCards()); r.code != 0 {
				t.Fatalf("%s at last: %+v", kind, r)
			}
			s.opens(sealed, "dGV4dA==")
		})
	}
}

// A rotation that dies after its cards were dealt is taken up with them.
func TestRotationResumed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.keyed()
	sealed := s.encrypt("7", []byte("text"), nil)
	if r := s.ceremony("rotate-root", s.allCards(), "--resume"); r.code == 0 || !strings.Contains(r.err, "without --resume") {
		t.Errorf("nothing to resume: %+v", r)
	}
	for generation, point := range map[uint32]string{2: "rotation-written"} {
		s.killedAt(point, "rotate-root", s.allCards())
		if r := s.unseal(s.allCards()...); r.code != 0 {
			t.Fatal(r)
		}
		if r := s.ceremony("rotate-root", s.allCards(), "--resume"); r.code != 0 {
			t.Fatalf("resume after %s: %+v", point, r)
		}
		if st := s.status(); st.Generation != generation {
			t.Errorf("generation %d", st.Generation)
		}
		s.opens(sealed, "dGV4dA==")
	}
	s.kill()
	s.open()
	s.opens(sealed, "dGV4dA==")
}

// A lost card: the others authorise a new dealing, to them and an empty card; the lost
// one opens nothing any more, alone or with others.
func TestReplaceCard(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.blank()
	s.newCard("4")
	s.newCard("5")
	s.newCard("6")
	s.start()
	five := []string{"1", "2", "3", "4", "5"}
	if r := s.ceremony("init", five, "--shares", "5"); r.code != 0 {
		t.Fatal(r)
	}
	if r := s.unseal("2", "3", "4"); r.code != 0 {
		t.Fatal(r)
	}
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)
	sealed := s.encrypt("7", []byte("text"), nil)
	lost, stolen := s.serial("1"), s.object("2")
	with := []string{"1", "2", "3", "4", "5", "6"}
	if r := s.ceremony("replace-card", with[1:]); r.code != 2 || !strings.Contains(r.err, "serial") {
		t.Errorf("without a lost card: %+v", r)
	}
	if r := s.ceremony("replace-card", with, "--lost", "nonsense"); r.code != 2 {
		t.Errorf("a card that is none: %+v", r)
	}
	for _, point := range []string{"gathered-3", "after-store-2", "verified-4", "recorded"} {
		s.kill()
		s.startBinary(trikeyFailpoint, "TRIKEY_FAILPOINT="+point+"=kill")
		s.unsealAny(with[1:])
		s.ceremony("replace-card", with[1:], "--lost", lost)
		s.kill()
		s.start()
		s.unsealAny(with[1:])
		s.opens(sealed, "dGV4dA==")
		if point == "recorded" {
			break
		}
		if r := s.unsealSealed("1", "2", "3"); r.code != 0 {
			t.Errorf("before it is committed the card counts: %+v", r)
		}
	}
	// It was recorded: card 1 is out.
	s.ok("machine", "seal")
	if r := s.unseal("1"); r.code != 6 || !strings.Contains(r.err, "split") {
		t.Errorf("the lost card: %+v", r)
	}
	s.newCard("copy")
	s.store("copy", stolen)
	if r := s.unseal("copy"); r.code != 6 || !strings.Contains(r.err, "split") {
		t.Errorf("a copy of a share from before: %+v", r)
	}
	if r := s.unseal("6", "2", "1", "3"); r.code != 0 {
		t.Errorf("new cards, an old one among them: %+v", r)
	}
	s.opens(sealed, "dGV4dA==")
}

// unsealAny gives cards until the machine is open.
func (s *site) unsealAny(pins []string) {
	s.t.Helper()
	if r := s.unseal(pins...); r.code != 0 {
		s.t.Fatalf("unseal: %+v", r)
	}
}

// unsealSealed seals the machine and gives it cards.
func (s *site) unsealSealed(pins ...string) result {
	s.t.Helper()
	s.ok("machine", "seal")
	return s.unseal(pins...)
}

// Cards of before a resplit or a rotation, and any mix with those after, are refused by
// name; put back with the old machine.json they do not open the store of after.
func TestOldCards(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.keyed()
	sealed := s.encrypt("7", []byte("text"), nil)
	old := map[string][]byte{}
	keep := func() {
		for _, card := range s.allCards() {
			old[card] = s.object(card)
		}
	}
	machine := s.path("data", "machine.json")
	for _, kind := range []string{"resplit", "rotate-root"} {
		keep()
		before, err := os.ReadFile(machine)
		if err != nil {
			t.Fatal(err)
		}
		if r := s.ceremony(kind, s.allCards()); r.code != 0 {
			t.Fatal(r)
		}
		fresh := s.object("2")
		want := map[string]string{"resplit": "of split", "rotate-root": "root generation 1"}[kind]
		s.rewrite("2", old["2"])
		s.ok("machine", "seal")
		if r := s.unseal("1", "2", "3"); r.code != 6 || !strings.Contains(r.err, want) || s.state() != "collecting 2/3" {
			t.Errorf("%s: a mix: %+v, %s", kind, r, s.state())
		}
		s.ok("machine", "seal")
		// The old record and all the old cards: the store is of another time.
		after, err := os.ReadFile(machine)
		if err != nil {
			t.Fatal(err)
		}
		newest := map[string][]byte{"1": s.object("1"), "2": fresh, "3": s.object("3")}
		for _, card := range s.allCards() {
			s.rewrite(card, old[card])
		}
		s.kill()
		s.write(machine, before)
		s.start()
		if r := s.unseal(s.allCards()...); r.code != 6 || s.state() != "sealed 0/3" {
			t.Errorf("%s: the old cards with the old record: %+v, %s", kind, r, s.state())
		}
		s.kill()
		s.write(machine, after)
		for _, card := range s.allCards() {
			s.rewrite(card, newest[card])
		}
		s.open()
		s.opens(sealed, "dGV4dA==")
	}
}

func (s *site) write(path string, content []byte) {
	s.t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// Two of three cards, and every card that is pulled out in the middle of a ceremony.
func TestCardPulledInCeremony(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.keyed()
	sealed := s.encrypt("7", []byte("text"), nil)
	token := s.token("2")
	away := s.path("cards", filepath.Base(token))
	for _, kind := range []string{"resplit", "rotate-root", "verify-cards"} {
		for _, point := range []string{"gathered-1", "before-store-2", "after-store-2", "dealt-2", "verified-1"} {
			s.kill()
			s.startBinary(trikeyFailpoint, "TRIKEY_FAILPOINT="+point+"=hide:"+token)
			s.unsealAny(s.allCards())
			before := s.status()
			r := s.ceremony(kind, s.allCards())
			if _, err := os.Stat(away); err != nil {
				if kind != "verify-cards" {
					t.Errorf("%s never came to %s", kind, point)
				}
				continue
			}
			if r.code == 0 || r.err == "" || strings.Contains(r.err, "panic") {
				t.Errorf("%s without a card at %s: %+v", kind, point, r)
			}
			if err := os.Rename(away, token); err != nil {
				t.Fatal(err)
			}
			if after := s.status(); after.SplitID != before.SplitID || after.State != "open" {
				t.Errorf("%s at %s: %+v", kind, point, after)
			}
			s.opens(sealed, "dGV4dA==")
			if r := s.unsealSealed(s.allCards()...); r.code != 0 {
				t.Errorf("%s at %s: afterwards: %+v", kind, point, r)
			}
		}
	}
	if r := s.ceremony("resplit", []string{"1", "2"}); r.code == 0 {
		t.Errorf("two cards authorised a ceremony: %+v", r)
	}
}

// A card that is pulled out in the middle of init, or of a replacement, ends it with a
// clear error; with the card back it can be held again.
func TestCardPulledInDealing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.blank()
	for _, card := range []string{"4", "5", "6"} {
		s.newCard(card)
	}
	five := []string{"1", "2", "3", "4", "5"}
	token := s.token("2")
	away := s.path("cards", filepath.Base(token))
	pulled := func(kind, point string, pins []string, more ...string) {
		t.Helper()
		s.kill()
		s.startBinary(trikeyFailpoint, "TRIKEY_FAILPOINT="+point+"=hide:"+token)
		if kind != "init" {
			s.unsealAny(pins)
		}
		before := s.status()
		if r := s.ceremony(kind, pins, more...); r.code == 0 || r.err == "" || strings.Contains(r.err, "panic") {
			t.Errorf("%s without a card at %s: %+v", kind, point, r)
		}
		if err := os.Rename(away, token); err != nil {
			t.Errorf("%s never came to %s: %v", kind, point, err)
		}
		if after := s.status(); after.State != before.State || after.SplitID != before.SplitID {
			t.Errorf("%s at %s: %+v, before %+v", kind, point, after, before)
		}
	}
	for _, point := range []string{"before-store-2", "after-store-2", "dealt-2", "verified-1"} {
		pulled("init", point, five, "--shares", "5")
	}
	s.kill()
	s.start()
	if r := s.ceremony("init", five, "--shares", "5"); r.code != 0 {
		t.Fatal(r)
	}
	lost, others := s.serial("1"), []string{"2", "3", "4", "5", "6"}
	for _, point := range []string{"gathered-1", "before-store-1", "after-store-1", "dealt-1"} {
		pulled("replace-card", point, others, "--lost", lost)
	}
	s.kill()
	s.start()
	s.unsealAny(others)
	if r := s.ceremony("replace-card", others, "--lost", lost); r.code != 0 {
		t.Fatal(r)
	}
	if r := s.unsealSealed(others...); r.code != 0 {
		t.Error(r)
	}
}

// One reader and three cards, swapped in turn by people who read Chinese: the same for
// unsealing and for a drill.
func TestCardsInTurn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	tokens, away := map[string]string{}, map[string]string{}
	for _, card := range s.allCards() {
		tokens[card] = s.token(card)
		away[card] = s.path("cards", filepath.Base(tokens[card]))
	}
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	for _, card := range s.allCards() {
		move(tokens[card], away[card])
	}
	s.start()
	for _, ceremony := range []struct{ verb, done string }{{"unseal", "%d / 3"}, {"verify-cards", "%d / 3"}} {
		x := s.atTerminal("machine", ceremony.verb, "--lang", "zh")
		for i, card := range s.allCards() {
			x.shows("请插入下一张卡")
			move(away[card], tokens[card])
			var pin string
			_ = s.pin(card).Use(func(p []byte) error { pin = string(p); return nil })
			x.answer("PIN", pin)
			x.shows(fmt.Sprintf(ceremony.done, i+1))
			move(tokens[card], away[card])
		}
		x.shows("cmac-aes:")
		x.ends(0)
	}
	if s.state() != "open 3/3" {
		t.Error(s.state())
	}
}

// token returns the directory of a SoftHSM card.
func (s *site) token(card string) string {
	s.t.Helper()
	serial := s.serial(card)
	dirs, _ := filepath.Glob(s.path("cards", "tokens", "*"))
	for _, dir := range dirs {
		if strings.HasSuffix(strings.ReplaceAll(filepath.Base(dir), "-", ""), serial) {
			return dir
		}
	}
	s.t.Fatalf("no token directory for %s in %v", serial, dirs)
	return ""
}

// After destroy nothing opens: not with any card, not with a copy of the data directory
// from before, not by starting warm.
func TestDestroy(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.blank()
	s.newCard("4")
	s.newCard("5")
	s.start()
	five := []string{"1", "2", "3", "4", "5"}
	if r := s.ceremony("init", five, "--shares", "5"); r.code != 0 {
		t.Fatal(r)
	}
	s.unsealAny(five)
	s.ok("key", "create", "--index", "7", "--name", "chat")
	kcv := s.status().KCV
	s.kill()
	backup := filepath.Join(t.TempDir(), "data")
	sockets, _ := filepath.Glob(s.path("data", "*.sock"))
	for _, socket := range sockets {
		_ = os.Remove(socket)
	}
	if err := os.CopyFS(backup, os.DirFS(s.path("data"))); err != nil {
		t.Fatal(err)
	}
	s.start()
	if r := s.ceremony("destroy", five[:3]); r.code != 2 || !strings.Contains(r.err, "--confirm "+kcv) {
		t.Errorf("unconfirmed: %+v", r)
	}
	if r := s.ceremony("destroy", five[:2], "--confirm", kcv); r.code == 0 {
		t.Errorf("two cards: %+v", r)
	}
	// It dies after the first card; nothing else is done until it is over; and once more,
	// when all cards are erased.
	s.kill()
	s.startBinary(trikeyFailpoint, "TRIKEY_FAILPOINT=erased-2=kill")
	s.ceremony("destroy", five[:3], "--confirm", kcv)
	s.kill()
	s.startBinary(trikeyFailpoint, "TRIKEY_FAILPOINT=chip-renewed=kill")
	for _, r := range []result{s.unseal("2", "3", "4", "5"), s.ceremony("resplit", five), s.ceremony("destroy", five, "--confirm", kcv)} {
		if r.code == 0 || !strings.Contains(r.err, "being destroyed") {
			t.Errorf("in the middle of a destruction: %+v", r)
		}
	}
	if r := s.ceremony("destroy", five[:3], "--resume", "--confirm", kcv); r.code == 0 {
		t.Errorf("the machine died, but: %+v", r)
	}
	s.kill()
	s.start()
	if st := s.status(); st.State != "blank" {
		t.Fatalf("%+v", st)
	}
	for _, card := range five[:3] {
		if n := s.objects(card); n != 0 {
			t.Errorf("card %s has %d objects", card, n)
		}
	}
	s.kill()
	if err := os.RemoveAll(s.path("data")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(s.path("data"), os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
	s.start()
	if r := s.unseal(five...); r.code == 0 || s.status().State == "open" {
		t.Errorf("a copy from before opened: %+v", r)
	}
}

// Ten thousand keys move to a new root while clients encrypt and decrypt: no call fails.
func TestRotateManyUnderLoad(t *testing.T) {
	t.Parallel()
	const keys = 10_000
	s := newSite(t)
	s.keyed()
	s.createKeys(keys - 1)
	sealed := s.encrypt("7", []byte("text"), nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var calls [2]int
	for worker := range calls {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				fresh := s.encrypt(fmt.Sprint(1000+calls[worker]%keys/2), []byte("text"), nil)
				for _, c := range []string{sealed, fresh} {
					if a := s.post("/v1/batch/decrypt", object{"items": []object{{"ciphertext": c}}}); a.status != 200 || !strings.Contains(string(a.raw), "dGV4dA==") {
						t.Errorf("decrypt: %d %s", a.status, a.raw)
						return
					}
				}
				calls[worker]++
			}
		})
	}
	r := s.ceremony("rotate-root", s.allCards())
	close(stop)
	wg.Wait()
	if r.code != 0 || calls[0]+calls[1] == 0 {
		t.Fatalf("%+v, %v calls", r, calls)
	}
	t.Logf("%d keys moved during %d rounds of calls", keys, calls[0]+calls[1])
	s.kill()
	s.open()
	s.opens(sealed, "dGV4dA==")
	var list []struct{ Wrapped string }
	s.ok("key", "list", "-o", "json").json(t, &list)
	if len(list) != keys {
		t.Errorf("%d keys", len(list))
	}
	if before, after := s.entries("g1/"), s.entries("g2/keys/"); len(before) > 0 || len(after) != keys {
		t.Errorf("%d records are under the root before, %d keys under the next", len(before), len(after))
	}
}

// createKeys makes keys by the admin socket, from index 1000 on.
func (s *site) createKeys(n int) {
	s.t.Helper()
	c := unixsock.Client(s.path("data", "admin.sock"))
	defer c.CloseIdleConnections()
	for i := range n {
		body := fmt.Sprintf(`{"index":%d}`, 1000+i)
		res, err := c.Post("http://admin/admin/v1/keys", "application/json", strings.NewReader(body))
		if err != nil {
			s.t.Fatal(err)
		}
		raw, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK {
			s.t.Fatalf("key %d: %d %s", 1000+i, res.StatusCode, raw)
		}
	}
}

// Where it is the policy, the machine starts without cards, from what its chip opens; a
// sealing ends that, and so does another policy.
func TestWarmStart(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	warm := "TRIKEY_MACHINE_START=warm"
	s.open(warm)
	s.ok("key", "create", "--index", "7", "--name", "chat")
	s.createApp("im", "127.0.0.1/32", "keys=*;ops="+allOps)
	sealed := s.encrypt("7", []byte("text"), nil)
	s.kill()
	s.start(warm)
	if s.state() != "open 3/3" || !strings.Contains(s.log.String(), "without cards") {
		t.Errorf("%s\n%s", s.state(), s.log)
	}
	s.opens(sealed, "dGV4dA==")
	for _, kind := range []string{"resplit", "rotate-root"} {
		if r := s.ceremony(kind, s.allCards()); r.code != 0 {
			t.Fatal(r)
		}
		s.kill()
		s.start(warm)
		s.opens(sealed, "dGV4dA==")
	}
	s.ok("machine", "seal")
	s.kill()
	s.start(warm)
	if s.state() != "sealed 0/3" {
		t.Errorf("a sealed machine started %s", s.state())
	}
	s.unsealAny(s.allCards())
	s.kill()
	s.start()
	if s.state() != "sealed 0/3" {
		t.Errorf("start: cards started %s", s.state())
	}
	s.kill()
	s.start(warm)
	if s.state() != "sealed 0/3" {
		t.Errorf("what another policy has removed is back: %s", s.state())
	}
	// Another chip, or an altered file, does not open it.
	s.unsealAny(s.allCards())
	s.kill()
	var kept map[string]any
	raw, err := os.ReadFile(s.path("data", "warm.json"))
	if err != nil || json.Unmarshal(raw, &kept) != nil {
		t.Fatalf("%s, %v", raw, err)
	}
	kept["sealed"] = "AAAA" + kept["sealed"].(string)[4:]
	raw, _ = json.Marshal(kept)
	s.write(s.path("data", "warm.json"), raw)
	s.start(warm)
	if s.state() != "sealed 0/3" || !strings.Contains(s.log.String(), "warm.json") {
		t.Errorf("%s\n%s", s.state(), s.log)
	}
}

// The report of a ceremony is signed, can be checked without the machine, and printed.
func TestReport(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.keyed()
	r := s.ceremony("verify-cards", s.allCards(), "--person", "Li Lei", "--person", "Han Meimei")
	var report hsm.Report
	r.json(t, &report)
	if len(report.People) != 2 || len(report.Cards) != 3 || report.Cards[0].Role != hsm.RoleTested || report.KCV != s.status().KCV {
		t.Errorf("%+v", report)
	}
	files, _ := filepath.Glob(s.path("data", "ceremonies", "*-verify-cards-*"))
	if len(files) != 2 {
		t.Fatalf("%v", files)
	}
	page, err := os.ReadFile(files[0])
	if err != nil || !strings.Contains(string(page), "Han Meimei") || !strings.Contains(string(page), report.KCV) {
		t.Errorf("the page: %v\n%.300s", err, page)
	}
	s.kill()
	if r := s.run("machine", "check-report", files[1], "--fingerprint", report.Fingerprint); r.code != 0 {
		t.Error(r)
	}
	if r := s.run("machine", "check-report", files[1], "--fingerprint", strings.Repeat("0", 64)); r.code != 6 {
		t.Error(r)
	}
	raw, err := os.ReadFile(files[1])
	if err != nil {
		t.Fatal(err)
	}
	s.write(files[1], []byte(strings.Replace(string(raw), "Li Lei", "Li Xei", 1)))
	if r := s.run("machine", "check-report", files[1]); r.code != 6 || !strings.Contains(r.err, "altered") {
		t.Error(r)
	}
}

// Every ceremony can be rehearsed, and leaves nothing.
func TestRehearse(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	for _, kind := range []string{"init", "verify-cards", "resplit", "replace-card", "rotate-root", "destroy"} {
		r := run(t, nil, []string{"TMPDIR=" + tmp}, "machine", kind, "--rehearse", "--lang", "zh")
		if r.code != 0 || !strings.Contains(r.err, "演练结束") || !strings.Contains(r.out, "指纹") {
			t.Errorf("%s: %+v", kind, r)
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
