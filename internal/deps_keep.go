package internal

import (
	_ "github.com/emmansun/gmsm/sm4"
	_ "github.com/go-chi/chi/v5"
	_ "github.com/go-json-experiment/json"
	_ "github.com/hashicorp/golang-lru/v2"
	_ "github.com/hashicorp/vault/shamir"
	_ "github.com/miekg/pkcs11"
	_ "github.com/prometheus/client_golang/prometheus"
	_ "github.com/prometheus/client_golang/prometheus/promhttp"
	_ "github.com/rogpeppe/go-internal/testscript"
	_ "github.com/spf13/cobra"
	_ "go.etcd.io/bbolt"
	_ "go.yaml.in/yaml/v3"
	_ "golang.org/x/crypto/chacha20poly1305"
	_ "golang.org/x/sys/unix"
	_ "golang.org/x/term"
)
