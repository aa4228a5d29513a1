package main_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a command at a terminal of its own, and the person at it.
type terminal struct {
	t      *testing.T
	cmd    *exec.Cmd
	master *os.File
	done   chan struct{} // closed when the command has closed the terminal

	mu   sync.Mutex
	text string // what it has shown and nobody has read yet
	seen string // all that it has shown
}

// atTerminal runs a command of the site.
func (s *site) atTerminal(args ...string) *terminal {
	s.t.Helper()
	return newTerminal(s.t, exec.CommandContext(s.t.Context(), trikey, append(args, "--config", s.path("trikey.yaml"))...))
}

// newTerminal runs a command at a terminal of its own.
func newTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err = errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	x := &terminal{t: t, cmd: cmd, master: master, done: make(chan struct{})}
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = slave, slave, slave
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err = errors.Join(x.cmd.Start(), slave.Close()); err != nil {
		t.Fatal(err)
	}
	go x.read()
	return x
}

func (x *terminal) read() {
	defer close(x.done)
	b := make([]byte, 4096)
	for {
		n, err := x.master.Read(b)
		x.mu.Lock()
		x.text += string(b[:n])
		x.seen += string(b[:n])
		x.mu.Unlock()
		if err != nil {
			return // the command has ended
		}
	}
}

// answer waits until the terminal shows a text, and types a line.
func (x *terminal) answer(want, line string) {
	x.t.Helper()
	x.shows(want)
	if _, err := x.master.WriteString(line + "\n"); err != nil {
		x.t.Fatal(err)
	}
}

func (x *terminal) shows(want string) {
	x.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		x.mu.Lock()
		_, rest, found := strings.Cut(x.text, want)
		if found {
			x.text = rest
		}
		seen := x.text
		x.mu.Unlock()
		if found {
			return
		}
		if time.Now().After(deadline) {
			_ = x.cmd.Process.Kill()
			x.t.Fatalf("the terminal shows %q, not %q", seen, want)
		}
	}
}

// ends waits for the end of the command.
func (x *terminal) ends(code int) {
	x.t.Helper()
	select {
	case <-x.done:
	case <-time.After(time.Minute):
		_ = x.cmd.Process.Kill()
		x.t.Fatal("the command does not end")
	}
	_ = x.cmd.Wait()
	_ = x.master.Close()
	if got := x.cmd.ProcessState.ExitCode(); got != code {
		x.t.Errorf("exit code %d, want %d; the terminal shows %q", got, code, x.text)
	}
}

// What a person at a terminal is told and asked: the tries left, the serial before a
// try that may lock the card, and each new PIN twice.
func TestTerminal(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	serial := s.serial("1")
	typed := func(file string) (pin string) {
		b := s.pin(file)
		defer b.Wipe()
		_ = b.Use(func(p []byte) error { pin = string(p); return nil })
		return pin
	}
	x := s.atTerminal("card", "inspect")
	x.answer(serial+". PIN", "00000000x")
	x.shows("CKR_PIN_INCORRECT")
	x.answer("(1 try left before this machine stops asking). PIN", "00000000x")
	x.answer("Type the card's serial, "+serial, "yes")
	x.shows(`"yes" was typed`)
	x.answer(s.serial("2")+". PIN", typed("2"))
	x.shows("share 2 of 3")
	x.ends(0)

	x = s.atTerminal("card", "inspect")
	x.answer("Type the card's serial, "+serial, serial)
	x.answer("(no try left before this machine asks for a confirmation). PIN", typed("1"))
	x.shows("share 1 of 3")
	x.ends(0)

	x = s.atTerminal("card", "change-pin", serial)
	x.answer(serial+". PIN", typed("1"))
	x.answer("New PIN: ", "135791")
	x.answer("New PIN once more: ", "135792")
	x.shows("not the same")
	x.ends(2)
	x = s.atTerminal("card", "change-pin", serial)
	x.answer(serial+". PIN", typed("1"))
	x.answer("New PIN: ", "135791")
	x.answer("New PIN once more: ", "135791")
	x.shows("is changed")
	x.ends(0)

	x = s.atTerminal("card", "format", serial)
	x.answer(serial+". PIN", "135791")
	x.answer("Type the card's serial, "+serial, "")
	x.ends(4)
	x = s.atTerminal("card", "format", serial)
	x.answer(serial+". PIN", "135791")
	x.answer("Type the card's serial, "+serial, serial)
	x.shows("removed 1")
	x.ends(0)

	x = s.atTerminal("card", "format", "--init", "--label", "new")
	for _, prompt := range []string{"SO PIN: ", "SO PIN once more: "} {
		x.answer(prompt, "987654321")
	}
	for _, prompt := range []string{"PIN: ", "PIN once more: "} {
		x.answer(prompt, "246810")
	}
	x.shows("is initialised")
	x.ends(0)
}
