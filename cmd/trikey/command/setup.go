package command

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/trikey/trikey/cmd/trikey/config"
	"github.com/trikey/trikey/hsm"
	"github.com/trikey/trikey/hsm/p11"
	"github.com/trikey/trikey/hsm/p11/softhsm"
	"github.com/trikey/trikey/internal/fault"
	"github.com/trikey/trikey/internal/secret"
)

// demoCards is how many key cards a demo directory has.
const demoCards = 3

// demoDir is a directory with everything to try Trikey: three SoftHSM key cards
// and a SoftHSM chip with their PINs, an authority and a certificate, and a
// configuration.
type demoDir struct {
	dir  string
	cfg  *config.Config
	pins []*secret.Bytes // of the cards
	ids  []hsm.CardID
}

func (d *demoDir) path(name ...string) string {
	return filepath.Join(append([]string{d.dir}, name...)...)
}

// setUp fills an empty directory and initialises the machine in it.
func setUp(ctx context.Context, dir string, basePort int) (*demoDir, error) {
	d, err := layOut(dir, basePort)
	if err != nil {
		return nil, err
	}
	return d, d.deal(ctx, demoCards)
}

// layOut fills an empty directory; the machine in it is blank.
func layOut(dir string, basePort int) (*demoDir, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fault.New(fault.Conflict, "%s is not empty; name a new directory", dir)
	}
	d := &demoDir{dir: dir, cfg: config.Default()}
	d.cfg.Data = d.path("data")
	if err := errors.Join(os.MkdirAll(d.path("pins"), 0o700), os.MkdirAll(d.path("tls"), 0o700), os.MkdirAll(d.cfg.Data, 0o700)); err != nil {
		return nil, err
	}
	for _, step := range []func() error{
		func() error { return d.choosePorts(basePort) }, d.makeCards, d.makeChip, d.makeCertificate,
		func() error { return d.cfg.Save(d.path("trikey.yaml")) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// choosePorts lays the listeners out from a base (api N, grpc N+1, admin N+2, ops N+4; the
// number between belongs to a later release), or from one where all are free.
func (d *demoDir) choosePorts(base int) error {
	for tries := 0; base == 0; tries++ {
		if tries == 1000 {
			return fault.New(fault.Unavailable, "no free ports were found; name some with --base-port")
		}
		// Below the ports that the kernel gives to outgoing connections (Linux: from 32768
		// on): one of those could be gone again before the service listens.
		if n := 10_000 + 5*mathrand.IntN(4500); allFree(n) { //nolint:gosec // a port is no secret
			base = n
		}
	}
	d.cfg.API.Listen, d.cfg.GRPC.Listen = local(base), local(base+1)
	d.cfg.Admin.Listen, d.cfg.Ops.Listen = local(base+2), local(base+4)
	return nil
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// allFree reports whether nobody listens on the ports from a base.
func allFree(base int) bool {
	for port := base; port < base+5; port++ {
		l, err := net.Listen("tcp", local(port))
		if err != nil {
			return false
		}
		_ = l.Close()
	}
	return true
}

func (d *demoDir) makeCards() error {
	module, err := softhsm.NewReader(d.path("cards"))
	if err != nil {
		return err
	}
	d.cfg.Machine.Cards = []config.Module{{Module: module.Path, Env: module.Env}}
	for i := range demoCards {
		id, pin, err := newDemoToken(module, fmt.Sprintf("trikey-card-%d", i+1), d.path("pins", strconv.Itoa(i+1)))
		if err != nil {
			return err
		}
		d.ids = append(d.ids, id)
		d.pins = append(d.pins, pin)
	}
	return nil
}

// newDemoToken makes a token, and writes its PIN and, beside it, its serial.
func newDemoToken(module p11.ModuleConfig, label, pinFile string) (hsm.CardID, *secret.Bytes, error) {
	pin, err := softhsm.NewPIN(8)
	if err != nil {
		return hsm.CardID{}, nil, err
	}
	id, err := softhsm.NewToken(module, label, pin)
	if err != nil {
		return id, nil, err
	}
	err = pin.Use(func(p []byte) error { return os.WriteFile(pinFile, p, 0o600) })
	return id, pin, errors.Join(err, os.WriteFile(pinFile+".card", []byte(id.Serial+"\n"), 0o600))
}

// moreCards makes empty cards beside those of the directory, and returns the PIN files
// of all.
func (d *demoDir) moreCards(n int) (files []string, err error) {
	module := p11.ModuleConfig{Path: d.cfg.Machine.Cards[0].Module, Env: d.cfg.Machine.Cards[0].Env}
	for i := range demoCards + n {
		file := d.path("pins", strconv.Itoa(i+1))
		if i >= demoCards {
			id, pin, err := newDemoToken(module, fmt.Sprintf("trikey-card-%d", i+1), file)
			if err != nil {
				return nil, err
			}
			d.ids, d.pins = append(d.ids, id), append(d.pins, pin)
		}
		files = append(files, file)
	}
	return files, nil
}

func (d *demoDir) makeChip() error {
	module, err := softhsm.NewReader(d.path("chip"))
	if err != nil {
		return err
	}
	const label = "trikey-chip"
	chip := config.Chip{Module: module.Path, Env: module.Env, Label: label, PINFile: d.path("pins", "chip")}
	id, pin, err := newDemoToken(module, label, chip.PINFile)
	if err != nil {
		return err
	}
	defer pin.Wipe()
	chip.Serial = id.Serial
	d.cfg.Machine.Chip = chip
	return p11.ProvisionChip(p11.ChipConfig{Module: module, Label: label, Serial: id.Serial, PIN: pin})
}

// makeCertificate makes an authority, and a certificate of it for this host. The
// authority's key is forgotten.
func (d *demoDir) makeCertificate() error {
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Trikey demo authority"}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, leafKey.Public(), caKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		return err
	}
	d.cfg.CA, d.cfg.API.Cert, d.cfg.API.Key = d.path("ca.pem"), d.path("tls", "cert.pem"), d.path("tls", "key.pem")
	return errors.Join(
		writePEM(d.cfg.CA, 0o644, "CERTIFICATE", caDER),
		writePEM(d.cfg.API.Cert, 0o644, "CERTIFICATE", leafDER),
		writePEM(d.cfg.API.Key, 0o600, "PRIVATE KEY", keyDER),
	)
}

func writePEM(path string, mode os.FileMode, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

// deal runs the initialising ceremony with the first cards of the directory, any three
// of which then open the machine.
func (d *demoDir) deal(ctx context.Context, shares int) (err error) {
	n, err := newMachine(ctx, d.cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	progress, err := n.console.Begin(ctx, hsm.Plan{Kind: hsm.Init, Shares: shares, Threshold: demoCards})
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context, hsm.CardID, *secret.Bytes) (hsm.Progress, error){n.console.Deal, n.console.Verify} {
		for i, id := range d.ids[:shares] {
			if progress, err = step(ctx, id, d.pins[i]); err != nil {
				return errors.Join(err, n.console.Abort(ctx))
			}
		}
	}
	_, err = n.console.Commit(ctx, progress.KCV)
	return err
}
