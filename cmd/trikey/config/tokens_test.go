package config_test

import (
	"testing"

	"github.com/trikey/trikey/cmd/trikey/config"
)

func TestTokenIssuer(t *testing.T) {
	for _, test := range []struct{ issuer, listen, store, want string }{
		{"", "127.0.0.1:7443", config.StoreBolt, "https://127.0.0.1:7443"},
		{"", "[::1]:7443", config.StoreBolt, "https://[::1]:7443"},
		{"", "keys.example.com:7443", config.StoreBolt, "https://keys.example.com:7443"},
		{"", ":7443", config.StoreBolt, ""},
		{"", "0.0.0.0:7443", config.StoreBolt, ""},
		{"", "[::]:7443", config.StoreBolt, ""},
		{"", "127.0.0.1:7443", config.StoreEtcd, ""},
		{"https://keys.example.com", "0.0.0.0:7443", config.StoreEtcd, "https://keys.example.com"},
	} {
		c := config.Default()
		c.API.Listen, c.Store.Kind, c.Tokens.Issuer = test.listen, test.store, test.issuer
		if got := c.TokenIssuer(); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}
