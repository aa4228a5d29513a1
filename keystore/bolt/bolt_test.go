package bolt_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/keystore"
	"github.com/trikey/trikey/keystore/bolt"
	"github.com/trikey/trikey/keystore/storetest"
)

func open(t testing.TB, path string) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(bolt.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func put(t testing.TB, s keystore.Store, name, value string) {
	t.Helper()
	if _, err := s.Txn(t.Context(), nil, []keystore.Write{{Name: name, Value: []byte(value)}}); err != nil {
		t.Fatal(err)
	}
}

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) keystore.Store { return open(t, filepath.Join(t.TempDir(), "store.db")) })
}

func TestSurvivesReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := open(t, path)
	put(t, s, "a", "1")
	put(t, s, "b", "2")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	s = open(t, path)
	if e, err := s.Get(t.Context(), "b"); err != nil || string(e.Value) != "2" || e.Revision != 2 {
		t.Errorf("%+v, %v", e, err)
	}
	stop := errors.New("stop")
	err := s.Watch(t.Context(), "", 1, func(events []keystore.Event) error {
		if len(events) != 1 || events[0].Name != "b" {
			t.Errorf("%+v", events)
		}
		return stop
	})
	if !errors.Is(err, stop) {
		t.Error(err)
	}
}

func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	open(t, path)
	if _, err := bolt.Open(bolt.Config{Path: path}); !errors.Is(err, fault.StoreLocked) {
		t.Errorf("%v", err)
	}
}

func TestCompaction(t *testing.T) {
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db"), History: 5})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for i := range 20 {
		put(t, s, fmt.Sprint("k", i), "v")
	}
	never := func([]keystore.Event) error { return errors.New("called") }
	for _, from := range []int64{0, 14} {
		if err := s.Watch(t.Context(), "", from, never); !errors.Is(err, keystore.ErrCompacted) {
			t.Errorf("from %d: %v", from, err)
		}
	}
	stop := errors.New("stop")
	err = s.Watch(t.Context(), "", 15, func(e []keystore.Event) error {
		if e[0].Revision != 16 {
			t.Errorf("the first event is of %d", e[0].Revision)
		}
		return stop
	})
	if !errors.Is(err, stop) {
		t.Errorf("from 15: %v", err)
	}
}

// TestDamaged opens files that are not key stores any more. Each runs in a process of
// its own, because what is tested is that the process does not die of them.
func TestDamaged(t *testing.T) {
	good := filepath.Join(t.TempDir(), "good.db")
	s := open(t, good)
	for i := range 300 {
		put(t, s, fmt.Sprintf("keys/%05d", i), string(bytes.Repeat([]byte{byte(i)}, 300)))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	fill := func(from, to int, with byte) []byte {
		b := bytes.Clone(whole)
		for i := from; i < to && i < len(b); i++ {
			b[i] = with
		}
		return b
	}
	cases := map[string][]byte{
		"empty": {}, "garbage": bytes.Repeat([]byte("garbage!"), 4096), "short": whole[:100], "text": []byte("not a store\n"),
		"zeros": make([]byte, len(whole)), "half": whole[:len(whole)/2], "two pages": whole[:8192], "metas lost": fill(0, 8192, 0),
		"metas 0xff": fill(0, 8192, 0xff),
	}
	for page := 2; page < len(whole)/4096; page += 9 {
		cases[fmt.Sprintf("page %d zero", page)] = fill(page*4096, page*4096+4096, 0)
		cases[fmt.Sprintf("page %d 0xff", page)] = fill(page*4096, page*4096+4096, 0xff)
		cases[fmt.Sprintf("page %d head", page)] = fill(page*4096+8, page*4096+24, 0x7f)
	}
	refused := 0
	for name, content := range cases {
		path := filepath.Join(t.TempDir(), "store.db")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := child(t, "open", path).CombinedOutput()
		switch {
		case err != nil:
			t.Errorf("%s: the process died: %v\n%.600s", name, err, out)
		case bytes.HasPrefix(out, []byte("damaged")):
			refused++
		case !bytes.HasPrefix(out, []byte("opened")) || content == nil || len(content) < len(whole):
			t.Errorf("%s: %.300s", name, out)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, content) {
			t.Errorf("%s: the file was changed", name)
		}
	}
	// A page that the newest transaction does not use may hold anything.
	if refused < len(cases)/3 {
		t.Errorf("only %d of %d damaged files were refused", refused, len(cases))
	}
	if _, err := bolt.Open(bolt.Config{Path: t.TempDir()}); !errors.Is(err, fault.StoreDamaged) {
		t.Errorf("a directory: %v", err)
	}
}

// TestKill kills a writer at random moments; what it acknowledged must be there.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	next := 0
	for round := range 6 {
		cmd := child(t, "write", path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := next
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if _, err := fmt.Sscan(lines.Text(), &acknowledged); err != nil {
				t.Fatalf("round %d: %q", round, lines.Text())
			}
			if acknowledged == next+20+round*7 {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		s := open(t, path)
		entries, revision, err := s.List(t.Context(), "n/", "", 1<<20)
		if err != nil || len(entries) < acknowledged || revision != int64(len(entries)) {
			t.Fatalf("round %d: %d entries of %d acknowledged, revision %d, %v", round, len(entries), acknowledged, revision, err)
		}
		next = len(entries)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func child(t *testing.T, do, path string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_DO="+do, "STORE_TEST_PATH="+path,
		"GORACE=atexit_sleep_ms=0") // the race detector waits a second at each exit otherwise
	return cmd
}

func TestMain(m *testing.M) {
	path := os.Getenv("STORE_TEST_PATH")
	switch os.Getenv("STORE_TEST_DO") {
	case "open":
		openChild(path)
	case "write":
		writeChild(path)
	default:
		os.Exit(m.Run())
	}
}

func openChild(path string) {
	s, err := bolt.Open(bolt.Config{Path: path})
	if errors.Is(err, fault.StoreDamaged) {
		fmt.Println("damaged:", err)
		return
	}
	if err != nil {
		fmt.Println("other:", err)
		return
	}
	_, _, err = s.List(context.Background(), "", "", 1<<20)
	fmt.Println("opened, list:", err)
}

func writeChild(path string) {
	s, err := bolt.Open(bolt.Config{Path: path})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, n, err := s.List(context.Background(), "", "", 1)
	for err == nil {
		n++
		_, err = s.Txn(context.Background(), nil, []keystore.Write{{Name: fmt.Sprintf("n/%09d", n), Value: make([]byte, 200)}})
		fmt.Println(n)
	}
	fmt.Println(err)
}

func BenchmarkTxn(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "store.db"))
	for b.Loop() {
		put(b, s, "k", "some value")
	}
}

func BenchmarkGet(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "store.db"))
	put(b, s, "k", "some value")
	for b.Loop() {
		if _, err := s.Get(b.Context(), "k"); err != nil {
			b.Fatal(err)
		}
	}
}
