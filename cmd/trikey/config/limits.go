package config

import (
	"os"
	"reflect"

	"github.com/trikey/trikey/internal/fault"
)

// Limits are what callers are held to. Rates are written items=500/s,burst=1000, and
// none where they are "".
type Limits struct {
	App         string `yaml:"app"`         // of each app that has no rate of its own
	Address     string `yaml:"address"`     // of each address
	Key         string `yaml:"key"`         // of each key
	Connections int    `yaml:"connections"` // open at a time from one address; 0: any number
}

// Alerts are what people are told of.
type Alerts struct {
	Failures int     `yaml:"failures"` // failed authentications in a minute; 0: never
	Rate     int     `yaml:"rate"`     // times its mean that an app's rate must be; 0: never
	Webhook  Webhook `yaml:"webhook"`
}

// Webhook is where alerts are posted to.
type Webhook struct {
	URL        string `yaml:"url"`         // https; "": nowhere
	CA         string `yaml:"ca"`          // PEM file; "": the system's authorities
	SecretFile string `yaml:"secret_file"` // whsec_ and base64; mode 0600
}

func (a *Alerts) check() error {
	if a.Failures < 0 || a.Rate < 0 {
		return fault.New(fault.BadConfig, "alerts.failures, alerts.rate: less than 0")
	}
	if (a.Webhook.URL == "") != (a.Webhook.SecretFile == "") {
		return fault.New(fault.BadConfig, "alerts.webhook: url and secret_file belong together; give both or none")
	}
	return nil
}

// Find returns the path of the configuration: the one that is named, TRIKEY_CONFIG, or
// the first of Places that is there; "" where there is none.
func Find(path string) string {
	if path == "" {
		path = os.Getenv("TRIKEY_CONFIG")
	}
	for _, place := range Places {
		if _, err := os.Stat(place); path == "" && err == nil {
			path = place
		}
	}
	return path
}

// Changed returns the keys whose values are not the same in both.
func (c *Config) Changed(other *Config) (keys []Key) {
	values := map[Key]any{}
	_ = c.walk(func(k Key, v reflect.Value) error { values[k] = v.Interface(); return nil })
	_ = other.walk(func(k Key, v reflect.Value) error {
		if !reflect.DeepEqual(values[k], v.Interface()) {
			keys = append(keys, k)
		}
		return nil
	})
	return keys
}
