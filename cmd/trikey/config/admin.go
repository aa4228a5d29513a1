package config

import (
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/trikey/trikey/internal/fault"
)

// Admin is the management of the service: the listener for people, and the socket of this
// host.
type Admin struct {
	Listen      string        `yaml:"listen"`       // "": people do not log in here
	Cert        string        `yaml:"cert"`         // PEM file; the API's when cert and key are ""
	Key         string        `yaml:"key"`          // PEM file, mode 0600
	Local       string        `yaml:"local"`        // full, the default, recovery or none: the socket once an admin has enrolled
	Approval    string        `yaml:"approval"`     // people, the default, off or always: when another person must approve what is dangerous
	RequestLife time.Duration `yaml:"request_life"` // how long a request waits for approval; 24h at most
	OIDC        OIDC          `yaml:"oidc"`
}

// OIDC is the OpenID Connect provider that people may log in by.
type OIDC struct {
	Issuer           string `yaml:"issuer"`             // https URL; "": none
	ClientID         string `yaml:"client_id"`          // of this service there
	ClientSecretFile string `yaml:"client_secret_file"` // mode 0600; "": a public client
	CA               string `yaml:"ca"`                 // PEM file; "": the system's authorities
}

func (o *OIDC) check() error {
	if o.Issuer == "" {
		if *o != (OIDC{}) {
			return fault.New(fault.BadConfig, "admin.oidc: issuer is missing")
		}
		return nil
	}
	u, err := url.Parse(o.Issuer)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fault.New(fault.BadConfig, "admin.oidc.issuer: is not a URL like https://HOST/PATH")
	}
	at, _ := netip.ParseAddr(u.Hostname())
	if u.Scheme != "https" && (u.Scheme != "http" || !at.IsLoopback()) {
		return fault.New(fault.BadConfig, "admin.oidc.issuer: is not https; http is for a provider at a loopback address")
	}
	if o.ClientID == "" {
		return fault.New(fault.BadConfig, "admin.oidc.client_id: is missing; register the service at the provider as a native application")
	}
	return nil
}

func defaultAdmin() Admin {
	return Admin{Listen: "127.0.0.1:7445", Local: "full", Approval: "people", RequestLife: maxRequestLife}
}

const maxRequestLife = 24 * time.Hour

func (a *Admin) check() error {
	if !slices.Contains([]string{"full", "recovery", "none"}, a.Local) {
		return fault.New(fault.BadConfig, "admin.local: %q is not full, recovery or none", a.Local)
	}
	if !slices.Contains([]string{"off", "people", "always"}, a.Approval) {
		return fault.New(fault.BadConfig, "admin.approval: %q is not off, people or always", a.Approval)
	}
	if (a.Cert == "") != (a.Key == "") {
		return fault.New(fault.BadConfig, "admin: cert and key belong together; give both, or neither for the API's")
	}
	if a.RequestLife <= 0 || a.RequestLife > maxRequestLife {
		return fault.New(fault.BadConfig, "admin.request_life: %s is not above 0 and up to 24h", a.RequestLife)
	}
	if a.Listen == "" && a.Local == "none" {
		return fault.New(fault.BadConfig, "admin: with local none and no listen nobody could manage the service")
	}
	return a.OIDC.check()
}
