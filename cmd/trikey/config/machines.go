package config

import (
	"net"
	"strings"

	"github.com/trikey/trikey/internal/fault"
)

// Apart is how services reach a machine that runs apart.
type Apart struct {
	Listen      string   `yaml:"listen,omitempty"`       // mutual TLS; "": there is no such listener
	Cert        string   `yaml:"cert,omitempty"`         // PEM file
	Key         string   `yaml:"key,omitempty"`          // PEM file, mode 0600
	ClientCA    string   `yaml:"client_ca,omitempty"`    // PEM file: authorities of services' certificates
	Services    []string `yaml:"services,omitempty"`     // that may use it: DNS names in certificates, or sha256: and the hash of a public key
	Socket      string   `yaml:"socket,omitempty"`       // unix socket for services on this host; "": none
	SocketUsers []int    `yaml:"socket_users,omitempty"` // who may use it besides the machine's own user and root
}

// Link is this service's end of the connections to machines that run apart.
type Link struct {
	Cert string `yaml:"cert,omitempty"` // PEM file
	Key  string `yaml:"key,omitempty"`  // PEM file, mode 0600
	CA   string `yaml:"ca,omitempty"`   // PEM file: authorities of machines' certificates
}

// checkMachines reports an address that is none, and a link that is needed and missing.
func (c *Config) checkMachines() error {
	for _, a := range c.Machines {
		if path, ok := strings.CutPrefix(a, "unix://"); ok {
			if !strings.HasPrefix(path, "/") {
				return fault.New(fault.BadConfig, "machines: %q is not unix:// and an absolute path", a)
			}
			continue
		}
		if _, _, err := net.SplitHostPort(strings.TrimPrefix(a, "dns:")); err != nil {
			return fault.New(fault.BadConfig, "machines: %q is none of HOST:PORT, dns:HOST:PORT and unix:///PATH", a)
		}
		if c.Link.Cert == "" || c.Link.Key == "" || c.Link.CA == "" {
			return fault.New(fault.BadConfig, "machines: %s wants a certificate; give link.cert, link.key and link.ca", a)
		}
	}
	return nil
}

// CheckApart reports what trikey machine serve lacks.
func (c *Config) CheckApart() error {
	m := c.Machine
	switch {
	case len(c.Machines) > 0:
		return fault.New(fault.BadConfig, "machines: these are of a service's configuration; a crypto machine has none")
	case m.Listen == "" && m.Socket == "":
		return fault.New(fault.BadConfig, "machine.listen and machine.socket are empty: no service could reach the machine; give one or both")
	case m.Listen != "" && (m.Cert == "" || m.Key == "" || m.ClientCA == ""):
		return fault.New(fault.BadConfig, "machine.listen: it takes mutual TLS only; give machine.cert, machine.key and machine.client_ca")
	}
	return nil
}
