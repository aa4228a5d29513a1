package command

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/internal/jsonhttp"
)

// child is the service as a process of its own.
type child struct {
	cmd    *exec.Cmd
	output *strings.Builder // what it logged, for when it fails
	exited chan error
}

func startServer(ctx context.Context, yaml string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.CommandContext(ctx, self, "serve", "--config", yaml), output: &strings.Builder{}, exited: make(chan error, 1)}
	c.cmd.Stderr = c.output
	c.cmd.Cancel = func() error { return c.cmd.Process.Signal(syscall.SIGTERM) }
	c.cmd.WaitDelay = 20 * time.Second
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		err := c.cmd.Wait()
		if err != nil && errors.Is(err, ctx.Err()) {
			err = nil // it was told to end, and ended well
		}
		c.exited <- err
	}()
	return c, nil
}

// waitFor waits until the service answers; until it is ready, if that is asked.
func (c *child) waitFor(ctx context.Context, cfg *config.Config, ready bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	path := "/livez"
	if ready {
		path = "/readyz"
	}
	for {
		err := jsonhttp.Do(ctx, http.DefaultClient, http.MethodGet, "http://"+cfg.Ops.Listen+path, nil, nil, nil)
		if err == nil {
			return nil
		}
		select {
		case exit := <-c.exited:
			c.exited <- exit
			return fmt.Errorf("the service ended at its start (%w):\n%s", exit, c.output)
		default:
		}
		if sleepErr := sleep(ctx, 50*time.Millisecond); sleepErr != nil {
			return fmt.Errorf("the service does not answer: %w", err)
		}
	}
}

func (c *child) stop() error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	if err := <-c.exited; err != nil {
		return fmt.Errorf("the service ended with %w:\n%s", err, c.output)
	}
	return nil
}
