package config

import (
	"path/filepath"
	"strings"

	"github.com/trikey/trikey/internal/fault"
)

// Store is where records are kept: in a file of this node alone, or in an etcd that many
// nodes share.
type Store struct {
	Kind         string   `yaml:"kind"`                    // StoreBolt, the default, or StoreEtcd
	Endpoints    []string `yaml:"endpoints,omitempty"`     // of etcd, the rest too: https://host:port of every member
	Prefix       string   `yaml:"prefix,omitempty"`        // of every key; /trikey/ when empty
	CA           string   `yaml:"ca,omitempty"`            // PEM file; the system's authorities when empty
	Cert         string   `yaml:"cert,omitempty"`          // PEM file, of this client
	Key          string   `yaml:"key,omitempty"`           // PEM file, mode 0600
	User         string   `yaml:"user,omitempty"`          // empty where etcd has no users
	PasswordFile string   `yaml:"password_file,omitempty"` // mode 0600
}

// The kinds of stores.
const (
	StoreBolt = "bolt" // data/store.db
	StoreEtcd = "etcd"
)

// StoreFile is the path of the key store of one node.
func (c *Config) StoreFile() string { return filepath.Join(c.Data, "store.db") }

func (s Store) check() error {
	switch {
	case s.Kind != StoreBolt && s.Kind != StoreEtcd:
		return fault.New(fault.BadConfig, "store.kind: %q is neither %s nor %s", s.Kind, StoreBolt, StoreEtcd)
	case s.Kind == StoreEtcd && len(s.Endpoints) == 0:
		return fault.New(fault.BadConfig, "store.endpoints: name every member of etcd, as https://host:2379")
	case s.Kind == StoreBolt && len(s.Endpoints) > 0:
		return fault.New(fault.BadConfig, "store.endpoints are given, but store.kind is %s: set it to %s, or remove them", StoreBolt, StoreEtcd)
	case (s.User == "") != (s.PasswordFile == ""):
		return fault.New(fault.BadConfig, "store.user and store.password_file: give both or none")
	}
	return nil
}

// ParseStore reads where a store is, as commands take it: bolt:PATH, or
// etcd:https://HOST:PORT[,https://HOST:PORT…][/PREFIX]. How to reach etcd is as in s. A
// path is returned for bolt only.
func (s Store) ParseStore(where string) (parsed Store, path string, err error) {
	kind, rest, _ := strings.Cut(where, ":")
	switch {
	case kind == StoreBolt && rest != "":
		path, err = filepath.Abs(rest)
		return Store{Kind: StoreBolt}, path, err
	case kind == StoreEtcd && rest != "":
		s.Kind, s.Endpoints = StoreEtcd, strings.Split(rest, ",")
		last := &s.Endpoints[len(s.Endpoints)-1]
		scheme, host, _ := strings.Cut(*last, "://")
		host, prefix, has := strings.Cut(host, "/")
		if *last = scheme + "://" + host; has && strings.Trim(prefix, "/") != "" {
			s.Prefix = "/" + strings.Trim(prefix, "/") + "/"
		}
		return s, "", s.check()
	}
	return s, "", fault.New(fault.Usage, "%q is neither bolt:PATH nor etcd:https://HOST:PORT[,…][/PREFIX]", where)
}
