package command

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// asker asks a person at the terminal, which does not show secrets; where there is none it
// takes the lines of standard input.
type asker struct {
	terminal bool
	w        io.Writer
	lines    *bufio.Reader
}

func newAsker(cmd *cobra.Command) *asker {
	return &asker{terminal: atTerminal(), w: cmd.ErrOrStderr(), lines: bufio.NewReader(cmd.InOrStdin())}
}

func (a *asker) raw(prompt string) ([]byte, error) {
	if a.terminal {
		fmt.Fprint(a.w, prompt)
	}
	line, err := a.lines.ReadBytes('\n')
	if err != nil && (!errors.Is(err, io.EOF) || len(line) == 0) {
		return nil, fault.Wrap(fault.Usage, err, "no answer to %q", strings.TrimSuffix(prompt, ": "))
	}
	n := len(line)
	for n > 0 && (line[n-1] == '\n' || line[n-1] == '\r') {
		n--
	}
	return line[:n], nil
}

func (a *asker) line(prompt string) (string, error) {
	line, err := a.raw(prompt)
	return strings.TrimSpace(string(line)), err
}

func (a *asker) secret(prompt string) (*secret.Bytes, error) {
	if a.terminal {
		return askSecret(a.w, prompt)
	}
	line, err := a.raw(prompt)
	if err != nil {
		return nil, err
	}
	return secret.Move(line)
}

// twice asks for a new secret, at a terminal twice.
func (a *asker) twice(prompt, again string) (*secret.Bytes, error) {
	first, err := a.secret(prompt)
	if err != nil || !a.terminal {
		return first, err
	}
	second, err := a.secret(again)
	if err != nil {
		first.Wipe()
		return nil, err
	}
	defer second.Wipe()
	if !first.Equal(second) {
		first.Wipe()
		return nil, fault.New(fault.Usage, "the two are not the same; nothing is changed")
	}
	return first, nil
}
