package config

import (
	"net"
	"net/netip"
	"time"
)

// Tokens says how access tokens are issued. It is the same on every node that shares a
// store.
type Tokens struct {
	Issuer   string        `yaml:"issuer,omitempty"`    // https URL of the service as clients reach it; see TokenIssuer
	Audience string        `yaml:"audience,omitempty"`  // the issuer when empty
	Key      string        `yaml:"key,omitempty"`       // name of the key that signs them; trikey-tokens when empty
	AppTTL   time.Duration `yaml:"app_ttl,omitempty"`   // of an app's token: 1m to 1h, the default
	UserTTL  time.Duration `yaml:"user_ttl,omitempty"`  // of a user's that says nothing else: 1m to 24h; 1h when 0
	AdminTTL time.Duration `yaml:"admin_ttl,omitempty"` // of an administrator's or auditor's: 1m to 2h; 1h when 0
}

// TokenIssuer is who issues tokens. Where it is not configured, a node with a store of its
// own is known by its address; one that shares its store, or listens on every address,
// cannot know and issues none.
func (c *Config) TokenIssuer() string {
	if c.Tokens.Issuer != "" {
		return c.Tokens.Issuer
	}
	host, _, err := net.SplitHostPort(c.API.Listen)
	addr, bad := netip.ParseAddr(host)
	if err != nil || host == "" || bad == nil && addr.IsUnspecified() || c.Store.Kind != StoreBolt {
		return ""
	}
	return "https://" + c.API.Listen
}
