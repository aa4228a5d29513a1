// Package config reads Trikey's configuration: one YAML file, whose every key can
// also be given in the environment (TRIKEY_API_LISTEN for api.listen) and as a flag
// (--api-listen). A flag wins over the environment, and that over the file. A key
// that is not known is an error that names its line.
//
// Paths in the file are relative to the file's directory.
package config

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/trikey/trikey/internal/fault"
)

// Config is the whole configuration.
type Config struct {
	Data    string  `yaml:"data"`   // directory of the key store, the machine's record and the sockets
	Region  string  `yaml:"region"` // bound into the root set and every key; cannot be changed later
	API     API     `yaml:"api"`
	GRPC    GRPC    `yaml:"grpc"`
	Admin   Admin   `yaml:"admin"`
	Ops     Ops     `yaml:"ops"`
	Machine Machine `yaml:"machine"`
	Store   Store   `yaml:"store"`
	Audit   Audit   `yaml:"audit"`
	Tokens  Tokens  `yaml:"tokens"`
	Limits  Limits  `yaml:"limits"`
	Alerts  Alerts  `yaml:"alerts"`

	Machines []string `yaml:"machines,omitempty"` // crypto machines that run apart; none: the one in this process
	Link     Link     `yaml:"link"`               // to them

	CA string `yaml:"ca"` // PEM file with which commands on this host check the service's certificate
}

// API is the data plane.
type API struct {
	Listen         string         `yaml:"listen"`
	Cert           string         `yaml:"cert"`      // PEM file
	Key            string         `yaml:"key"`       // PEM file, mode 0600
	ClientCA       string         `yaml:"client_ca"` // PEM file; "": client certificates need no authority, their keys are registered
	TrustedProxies []netip.Prefix `yaml:"trusted_proxies"`
}

// GRPC is the data plane over gRPC.
type GRPC struct {
	Listen string `yaml:"listen"` // "": there is none
	Cert   string `yaml:"cert"`   // PEM file; the API's when cert and key are ""
	Key    string `yaml:"key"`    // PEM file, mode 0600
}

// Ops is the listener of health checks and metrics. It has no TLS: keep it on
// loopback.
type Ops struct {
	Listen string `yaml:"listen"`
}

// Audit is the record of what was done.
type Audit struct {
	Dir       string `yaml:"dir"`        // "": the directory audit of the data directory
	Data      string `yaml:"data"`       // sync, the default, async or off: whether answers of the data plane wait for their event
	OnFailure string `yaml:"on_failure"` // closed, the default, or open: the data plane while nothing can be recorded
	Ship      []Ship `yaml:"ship"`       // where checkpoints go
}

// Ship is one place where checkpoints are kept off this host: one of the three.
type Ship struct {
	File    string `yaml:"file,omitempty"`    // appended to
	Webhook string `yaml:"webhook,omitempty"` // https URL
	CA      string `yaml:"ca,omitempty"`      // of the webhook: PEM file; "": the system's authorities
	Syslog  string `yaml:"syslog,omitempty"`  // unix socket of the daemon: /dev/log
}

// Machine is the crypto machine in this process.
type Machine struct {
	Engine string   `yaml:"engine"` // EngineHost, the default, or EngineToken
	Chip   Chip     `yaml:"chip"`
	Cards  []Module `yaml:"cards"` // the PKCS#11 modules of the card readers
	Start  string   `yaml:"start"` // StartCards, the default, or StartWarm
	Join   string   `yaml:"join"`  // JoinOff, the default, or JoinApprove: the root to or from another machine without its cards
	Keys   int      `yaml:"keys"`  // business keys kept unwrapped, in locked memory or in the token

	Custodians Custodians `yaml:"custodians"`

	Apart `yaml:",inline"` // of trikey machine serve
}

// Custodians is the listener for the shares of custodians who are elsewhere.
type Custodians struct {
	Listen string `yaml:"listen"` // "": there is none
	Cert   string `yaml:"cert"`   // PEM file; the API's when cert and key are ""
	Key    string `yaml:"key"`    // PEM file, mode 0600
}

// The engines: where business keys are, and what computes with them.
const (
	EngineHost  = "host"  // this process, in locked memory
	EngineToken = "token" // the chip; AES-256-GCM only
)

// How the machine starts.
const (
	StartCards = "cards" // sealed; nothing on disk opens it
	StartWarm  = "warm"  // open, with the root on disk as the chip encrypts it
)

// Whether the machine gives its root key to another, or takes one from a peer.
const (
	JoinOff     = "off"     // never: each machine is opened by cards
	JoinApprove = "approve" // when two custodians approve, each with a card
)

// Module is a PKCS#11 library, and how shares are kept on its cards.
type Module struct {
	Module string            `yaml:"module"`
	Env    map[string]string `yaml:"env"`
	Form   string            `yaml:"form,omitempty"` // data: on the card (""); rsa: in a file, sealed to the card's key
	OAEP   string            `yaml:"oaep,omitempty"` // with rsa, the hash: sha1 or sha256 ("")
	Key    string            `yaml:"key,omitempty"`  // with rsa, the label of a key that the card has; "" makes one
}

// Chip is the machine's own token.
type Chip struct {
	Module  string            `yaml:"module"`
	Env     map[string]string `yaml:"env"`
	Label   string            `yaml:"label"`
	Serial  string            `yaml:"serial"`
	PINFile string            `yaml:"pin_file"` // mode 0600
}

// AdminSocket is the path of the admin socket.
func (c *Config) AdminSocket() string { return filepath.Join(c.Data, "admin.sock") }

// AuditDir is the directory of the audit log.
func (c *Config) AuditDir() string {
	if c.Audit.Dir != "" {
		return c.Audit.Dir
	}
	return filepath.Join(c.Data, "audit")
}

// CardShares is the directory of the shares that are sealed to cards (form rsa).
func (c *Config) CardShares() string { return filepath.Join(c.Data, "card-shares") }

// MachineSocket is the path of the machine's console.
func (c *Config) MachineSocket() string { return filepath.Join(c.Data, "machine.sock") }

// Default is the configuration of an empty file.
func Default() *Config {
	return &Config{
		Data: "data", API: API{Listen: "127.0.0.1:7443"}, GRPC: GRPC{Listen: "127.0.0.1:7444"}, Admin: defaultAdmin(), Ops: Ops{Listen: "127.0.0.1:7447"},
		Machine: Machine{Engine: EngineHost, Start: StartCards, Join: JoinOff, Keys: 16384},
		Store:   Store{Kind: StoreBolt}, Audit: Audit{Data: "sync", OnFailure: "closed"},
		Alerts: Alerts{Failures: 30, Rate: 10},
	}
}

// Places are where the configuration is looked for when no file is named.
var Places = []string{"trikey.yaml", "/etc/trikey/trikey.yaml"}

// Load reads the configuration. path may be empty: then Places are tried. flags has the
// values of flags that were given, by key (api.listen).
func Load(path string, flags map[string]string) (*Config, error) {
	c := Default()
	if path = Find(path); path == "" {
		return nil, fault.New(fault.BadConfig, "there is no configuration: name one with --config, or make a directory to try with "+
			"(trikey demo --dir DIR --setup-only)")
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(fault.BadConfig, err, "the configuration cannot be read")
	}
	d := yaml.NewDecoder(bytes.NewReader(raw))
	d.KnownFields(true)
	if err := d.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.BadConfig, "%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := c.override(flags); err != nil {
		return nil, err
	}
	if e := c.Machine.Engine; e != EngineHost && e != EngineToken {
		return nil, fault.New(fault.BadConfig, "machine.engine: %q is neither %s nor %s", e, EngineHost, EngineToken)
	}
	if c.Machine.Start != StartCards && c.Machine.Start != StartWarm {
		return nil, fault.New(fault.BadConfig, "machine.start: %q is neither %s nor %s", c.Machine.Start, StartCards, StartWarm)
	}
	if j := c.Machine.Join; j != JoinOff && j != JoinApprove {
		return nil, fault.New(fault.BadConfig, "machine.join: %q is neither %s nor %s", j, JoinOff, JoinApprove)
	}
	if err := errors.Join(c.Store.check(), c.Audit.check(), c.Alerts.check(), c.checkMachines()); err != nil {
		return nil, err
	}
	if err := c.Admin.check(); err != nil {
		return nil, err
	}
	if custodians := c.Machine.Custodians; (custodians.Cert == "") != (custodians.Key == "") {
		return nil, fault.New(fault.BadConfig, "machine.custodians: cert and key belong together; give both, or neither for the API's")
	}
	if (c.GRPC.Cert == "") != (c.GRPC.Key == "") {
		return nil, fault.New(fault.BadConfig, "grpc: cert and key belong together; give both, or neither for the API's")
	}
	return c, c.resolve(filepath.Dir(path))
}

func (a *Audit) check() error {
	if !slices.Contains([]string{"sync", "async", "off"}, a.Data) {
		return fault.New(fault.BadConfig, "audit.data: %q is not sync, async or off", a.Data)
	}
	if a.OnFailure != "closed" && a.OnFailure != "open" {
		return fault.New(fault.BadConfig, "audit.on_failure: %q is neither closed nor open", a.OnFailure)
	}
	for i, s := range a.Ship {
		given := 0
		for _, v := range []string{s.File, s.Webhook, s.Syslog} {
			if v != "" {
				given++
			}
		}
		if given != 1 {
			return fault.New(fault.BadConfig, "audit.ship: entry %d must have one of file, webhook and syslog", i+1)
		}
	}
	return nil
}

// Key is a key of the configuration, like api.listen.
type Key string

// Env is the environment's variable for the key.
func (k Key) Env() string {
	return "TRIKEY_" + strings.ToUpper(strings.ReplaceAll(string(k), ".", "_"))
}

// Flag is the flag's name for the key.
func (k Key) Flag() string { return strings.NewReplacer(".", "-", "_", "-").Replace(string(k)) }

// Keys returns every key.
func Keys() []Key {
	var keys []Key
	_ = Default().walk(func(k Key, _ reflect.Value) error { keys = append(keys, k); return nil })
	return keys
}

// walk calls f with every key and the field it sets.
func (c *Config) walk(f func(Key, reflect.Value) error) error {
	var visit func(prefix string, v reflect.Value) error
	visit = func(prefix string, v reflect.Value) error {
		for i := range v.NumField() {
			tag, rest, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			name := prefix + tag
			var err error
			if rest == "inline" {
				err = visit(prefix, v.Field(i))
			} else if v.Field(i).Kind() == reflect.Struct {
				err = visit(name+".", v.Field(i))
			} else {
				err = f(Key(name), v.Field(i))
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return visit("", reflect.ValueOf(c).Elem())
}

// override applies the environment and the flags. A value is read as the file's would
// be.
func (c *Config) override(flags map[string]string) error {
	return c.walk(func(k Key, field reflect.Value) error {
		value, from := os.Getenv(k.Env()), k.Env()
		if v, ok := flags[string(k)]; ok {
			value, from = v, "--"+k.Flag()
		}
		if value == "" {
			return nil
		}
		if field.Kind() == reflect.String {
			field.SetString(value)
			return nil
		}
		if err := yaml.Unmarshal([]byte(value), field.Addr().Interface()); err != nil {
			return fault.New(fault.BadConfig, "%s: %v", from, err)
		}
		return nil
	})
}

// resolve makes paths absolute.
func (c *Config) resolve(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	paths := []*string{
		&c.Data, &c.Audit.Dir, &c.API.Cert, &c.API.Key, &c.API.ClientCA, &c.GRPC.Cert, &c.GRPC.Key, &c.CA, &c.Machine.Chip.Module, &c.Machine.Chip.PINFile,
		&c.Store.CA, &c.Store.Cert, &c.Store.Key, &c.Store.PasswordFile,
		&c.Machine.Custodians.Cert, &c.Machine.Custodians.Key, &c.Alerts.Webhook.CA, &c.Alerts.Webhook.SecretFile, &c.Admin.Cert, &c.Admin.Key, &c.Admin.OIDC.ClientSecretFile, &c.Admin.OIDC.CA,
		&c.Machine.Cert, &c.Machine.Key, &c.Machine.ClientCA, &c.Machine.Socket, &c.Link.Cert, &c.Link.Key, &c.Link.CA,
	}
	for i := range c.Audit.Ship {
		paths = append(paths, &c.Audit.Ship[i].File, &c.Audit.Ship[i].CA, &c.Audit.Ship[i].Syslog)
	}
	for i := range c.Machine.Cards {
		paths = append(paths, &c.Machine.Cards[i].Module)
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return nil
}

// Save writes the configuration to a new file.
func (c *Config) Save(path string) error {
	raw, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}
