package unixsock_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/trikey/trikey/internal/unixsock"
)

func serve(t *testing.T, path string) {
	t.Helper()
	l, err := unixsock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
}

func get(path string) (string, error) {
	c := unixsock.Client(path)
	defer c.CloseIdleConnections()
	res, err := c.Get("http://socket/")
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// A path of any length works, also where a dead process has left a socket.
func TestListen(t *testing.T) {
	for _, dir := range []string{"short", strings.Repeat("long/", 40)} {
		path := filepath.Join(t.TempDir(), dir, "x.sock")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			serve(t, path)
			if got, err := get(path); err != nil || got != "hello" {
				t.Errorf("%d bytes of path: %q, %v", len(path), got, err)
			}
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
	if _, err := get(filepath.Join(t.TempDir(), "none.sock")); err == nil {
		t.Error("nobody answered")
	}
}

// Another user is turned away even where the file's mode would let them in.
func TestAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("only root can become another user: not tested here")
		return
	}
	dir, err := os.MkdirTemp("/tmp", "sock-") // t.TempDir is for its owner only
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path, self := filepath.Join(dir, "x.sock"), filepath.Join(dir, "self")
	serve(t, path)
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(self, binary, 0o755), os.Chmod(dir, 0o755), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]string{0: "hello", 65534: "refused"} {
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Env = []string{"SOCK_TEST=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("user %d: %s, %v; want %s", uid, out, err, want)
		}
	}
}

func TestMain(m *testing.M) {
	path := os.Getenv("SOCK_TEST")
	if path == "" {
		os.Exit(m.Run())
	}
	got, err := get(path)
	if err != nil {
		got = "refused: " + err.Error()
	}
	fmt.Println(got)
}

// A socket for other users too has a mode that lets its group in; who is let in is still
// decided by the kernel's word.
func TestListenFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := unixsock.ListenFor(path, []int{os.Geteuid() + 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", info, err)
	}
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.Close()
		}
		accepted <- err
	}()
	c, err := unixsock.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if err := <-accepted; err != nil {
		t.Error(err)
	}
}
