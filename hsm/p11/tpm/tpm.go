// Package tpm makes a software TPM with the PKCS#11 module of the tpm2-software
// project over it, for tests: a second implementation of PKCS#11 beside SoftHSM, by
// other people and with other habits. Nothing outside the directory it is given is
// read or changed.
package tpm

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/hsm/p11/softhsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// ModuleVariable names the library where it is not in its usual place.
const ModuleVariable = "TRIKEY_TPM2_PKCS11_MODULE"

const (
	packages = "apt-get install swtpm libtpm2-pkcs11-1"
	// patience bounds the wait for a process that starts or ends.
	patience = 30 * time.Second
	// longestSocket is what the address of a unix socket has room for, with the
	// suffix of the control socket.
	longestSocket = 100
)

// Find returns the path of the PKCS#11 module.
func Find() (string, error) {
	if path := os.Getenv(ModuleVariable); path != "" {
		return path, nil
	}
	for _, pattern := range []string{
		"/usr/lib/*/libtpm2_pkcs11.so.1", "/usr/lib/*/pkcs11/libtpm2_pkcs11.so", "/usr/lib64/pkcs11/libtpm2_pkcs11.so",
		"/usr/lib/pkcs11/libtpm2_pkcs11.so", "/usr/local/lib/libtpm2_pkcs11.so.*",
	} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fault.New(fault.ModuleFault, "the PKCS#11 module for TPMs is not installed: %s, or set %s to libtpm2_pkcs11.so", packages, ModuleVariable)
}

// Device is a software TPM that runs until it is stopped.
type Device struct {
	Module p11.ModuleConfig // reaches this TPM, from any process

	cmd    *exec.Cmd
	output bytes.Buffer
	exited chan error
}

// Start makes dir, with a blank TPM and a copy of the module in it, and runs the TPM.
func Start(dir string) (*Device, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "socket")
	if len(socket) > longestSocket {
		return nil, fault.New(fault.ModuleFault, "%s is too long for the address of a socket; set TMPDIR to a shorter directory", socket)
	}
	swtpm, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, fault.Wrap(fault.ModuleFault, err, "the software TPM is not installed: %s", packages)
	}
	state := filepath.Join(dir, "state")
	d := &Device{exited: make(chan error, 1)}
	if d.Module, err = copyModule(dir, socket); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	d.cmd = exec.Command(swtpm, "socket", "--tpm2", "--tpmstate", "dir="+state, "--flags", "not-need-init,startup-clear",
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl")
	d.cmd.Stdout, d.cmd.Stderr = &d.output, &d.output
	// A test that is killed takes the TPM with it.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		return nil, fault.Wrap(fault.ModuleFault, err, "start the software TPM")
	}
	go func() { d.exited <- d.cmd.Wait() }()
	if err := d.await(socket+".ctrl", socket); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

// copyModule gives the device a library of its own: two devices are two instances of
// the library, as two makers' drivers would be.
func copyModule(dir, socket string) (p11.ModuleConfig, error) {
	library, err := Find()
	if err != nil {
		return p11.ModuleConfig{}, err
	}
	content, err := os.ReadFile(library)
	if err != nil {
		return p11.ModuleConfig{}, fault.Wrap(fault.ModuleFault, err, "read the PKCS#11 module for TPMs: %s", packages)
	}
	store := filepath.Join(dir, "store")
	cfg := p11.ModuleConfig{Path: filepath.Join(dir, "lib", "tpm2_pkcs11.so"), Env: map[string]string{
		"TPM2_PKCS11_STORE": store,
		"TPM2_PKCS11_TCTI":  "swtpm:path=" + socket,
		// Errors come back as return values; the libraries also print each.
		"TPM2_PKCS11_LOG_LEVEL": "0",
		"TSS2_LOG":              "all+NONE",
	}}
	return cfg, errors.Join(os.MkdirAll(store, 0o700), os.MkdirAll(filepath.Dir(cfg.Path), 0o700), os.WriteFile(cfg.Path, content, 0o600))
}

// await waits until the TPM listens.
func (d *Device) await(sockets ...string) error {
	deadline := time.Now().Add(patience)
	for _, s := range sockets {
		for {
			c, err := net.Dial("unix", s)
			if err == nil {
				_ = c.Close()
				break
			}
			select {
			case gone := <-d.exited:
				d.exited <- gone
				return fault.New(fault.ModuleFault, "the software TPM ended at once (%v): %s", gone, strings.TrimSpace(d.output.String()))
			case <-time.After(5 * time.Millisecond):
			}
			if time.Now().After(deadline) {
				return fault.Wrap(fault.ModuleFault, err, "the software TPM does not answer")
			}
		}
	}
	return nil
}

// Stop ends the TPM and waits until it is gone.
func (d *Device) Stop() error {
	_ = d.cmd.Process.Kill() // nothing of it is kept
	select {
	case gone := <-d.exited:
		d.exited <- gone // stopping again does nothing
		return nil
	case <-time.After(patience):
		return fmt.Errorf("tpm: the software TPM (process %d) does not end", d.cmd.Process.Pid)
	}
}

// NewToken makes the device's token. A device has one: the module gives every token
// the same serial number.
func (d *Device) NewToken(label string, pin *secret.Bytes) (hsm.CardID, error) {
	return softhsm.NewToken(d.Module, label, pin)
}
