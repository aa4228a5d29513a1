package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/internal/testca"
)

// fleet is three crypto machines apart, each on a unix socket and over mutual TLS, and a
// service for each way to use them, beside one with its machine in the process.
type fleet struct {
	cli
	dir      string
	ca       *testca.Authority
	configs  []*config.Config // of the machines
	machines []*exec.Cmd
	beds     []*bed
}

func newFleet(ctx context.Context, trikey string) (f *fleet, err error) {
	f = &fleet{cli: cli{ctx, trikey}}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if f.dir, err = os.MkdirTemp("", "trikey-bench-"); err != nil {
		return f, err
	}
	if f.ca, err = testca.New(f.dir); err != nil {
		return f, err
	}
	for range 3 {
		if err := f.addMachine(); err != nil {
			return f, err
		}
	}
	inProcess, err := newBed(ctx, trikey)
	if err != nil {
		return f, err
	}
	inProcess.name = "in-process"
	f.beds = append(f.beds, inProcess)
	for _, over := range []string{"unix", "mTLS"} {
		for n := 1; n <= 3; n++ {
			if err := f.addService(over, n); err != nil {
				return f, err
			}
		}
	}
	return f, nil
}

func (f *fleet) close() error {
	var failed error
	for _, b := range f.beds {
		failed = errors.Join(failed, b.close())
	}
	for _, m := range f.machines {
		_ = m.Process.Kill()
		_ = m.Wait()
	}
	return errors.Join(failed, os.RemoveAll(f.dir))
}

// site makes a directory and changes its configuration.
func (f *fleet) site(name string, change func(*config.Config) error) (dir, path string, cfg *config.Config, err error) {
	dir = filepath.Join(f.dir, name)
	path = filepath.Join(dir, "trikey.yaml")
	if _, err = f.run("demo", "--dir", dir, "--setup-only"); err != nil {
		return dir, path, nil, err
	}
	if cfg, err = config.Load(path, nil); err == nil {
		if err = change(cfg); err == nil {
			err = cfg.Save(path)
		}
	}
	return dir, path, cfg, err
}

func (f *fleet) addMachine() error {
	first := filepath.Join(f.dir, "machine-0")
	name := fmt.Sprintf("machine-%d", len(f.configs))
	dir, path, cfg, err := f.site(name, func(c *config.Config) (err error) {
		if len(f.configs) > 0 {
			c.Machine.Cards = f.configs[0].Machine.Cards
		}
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		c.Machine.Listen, c.Machine.Socket = free.Addr().String(), filepath.Join(c.Data, "services.sock")
		c.Machine.ClientCA, c.Machine.Services = f.ca.File, []string{"service"}
		c.Machine.Cert, c.Machine.Key, err = f.ca.Issue(name)
		return errors.Join(err, free.Close())
	})
	if err != nil {
		return err
	}
	if len(f.configs) > 0 { // the cards of the first open it
		raw, err := os.ReadFile(filepath.Join(first, "data", "machine.json"))
		if err = errors.Join(err, os.WriteFile(filepath.Join(dir, "data", "machine.json"), raw, 0o600)); err != nil {
			return err
		}
	}
	m := exec.CommandContext(f.ctx, f.trikey, "machine", "serve", "--config", path)
	if err := m.Start(); err != nil {
		return err
	}
	f.configs, f.machines = append(f.configs, cfg), append(f.machines, m)
	if err := f.waitFor("http://" + cfg.Ops.Listen + "/livez"); err != nil {
		return err
	}
	return f.unseal(path, first)
}

func (f *fleet) addService(over string, machines int) error {
	b := &bed{name: fmt.Sprintf("%s, %d", over, machines)}
	f.beds = append(f.beds, b)
	dir, path, cfg, err := f.site(fmt.Sprintf("%s-%d", over, machines), func(c *config.Config) (err error) {
		for _, m := range f.configs[:machines] {
			address := m.Machine.Listen
			if over == "unix" {
				address = "unix://" + m.Machine.Socket
			}
			c.Machines = append(c.Machines, address)
		}
		c.Machine, c.Link.CA = config.Default().Machine, f.ca.File
		c.Link.Cert, c.Link.Key, err = f.ca.Issue("service")
		return err
	})
	if err == nil {
		err = b.address(dir, path)
	}
	if err != nil {
		return err
	}
	b.trikey.process, b.trikey.more = exec.CommandContext(f.ctx, f.trikey, "serve", "--config", path), f.machines[:machines]
	if err := b.trikey.process.Start(); err != nil {
		return err
	}
	if err := f.waitFor("http://" + cfg.Ops.Listen + "/readyz"); err != nil {
		return err
	}
	return b.makeApp(f.cli, path)
}

// waitFor waits until a page is there.
func (f *fleet) waitFor(url string) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		res, err := http.Get(url)
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(res.Status)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %w", url, err)
		}
	}
}
