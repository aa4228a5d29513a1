# make demo   the whole main job, end to end
# make test   the whole suite
# make run    a service to try by hand
# make help   the other targets

SHELL := /bin/bash
export CGO_ENABLED := 1

GO      ?= go
TOOL    := $(GO) tool -modfile=tools/go.mod
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X github.com/trikey/trikey/cmd/trikey/command.version=$(VERSION)

# Packages with concurrency of their own run under the race detector. The command's
# tests drive the built binary from outside, where it would see nothing. Every other
# package, a new one too, runs with it.
NORACE := ^github.com/trikey/trikey/cmd/

FUZZTIME ?= 30s

.PHONY: build demo run test lint fuzz bench proto vuln deps test-deps clean help

build: deps ## build bin/trikey
	$(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/trikey ./cmd/trikey

demo: build ## run the main job in a throw-away directory
	bin/trikey demo

run: build ## run a service to try by hand, in .run; Ctrl-C ends it
	bin/trikey demo --dir .run --serve --base-port 7443

test: test-deps ## run every test
	@packages=$$($(GO) list ./...) || exit 1; \
	set -x; $(GO) test -race -timeout 15m $$(grep -v '$(NORACE)' <<<"$$packages")
	$(GO) test -timeout 20m ./cmd/...

lint: deps ## formatting, vet, linters, import direction, module files
	@unformatted=$$($(TOOL) gofumpt -l .) || exit 1; \
	if [ -n "$$unformatted" ]; then echo "not formatted with gofumpt:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(TOOL) golangci-lint run ./...
	$(GO) mod tidy -diff
	$(GO) mod verify

fuzz: deps ## run every fuzz target for FUZZTIME
	@packages=$$($(GO) list ./...) || exit 1; found=0; \
	for package in $$packages; do \
	  list=$$($(GO) test -list '^Fuzz' $$package) || { echo "$$list"; exit 1; }; \
	  for target in $$(echo "$$list" | grep '^Fuzz'); do \
	    found=$$((found+1)); echo "$$package $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
	  done; \
	done; \
	[ $$found -gt 0 ] || { echo "no fuzz target found"; exit 1; }

bench: build test-deps ## benchmarks beside the code, then the service from outside; some 8 minutes
	$(GO) test -run '^$$' -bench . -benchmem -benchtime 200ms ./hsm/alg ./hsm/p11 ./hsm/soft ./internal/envelope ./internal/httpsig ./keystore/bolt ./kms/nonce ./api ./hsm/remote ./kms/audit
	$(GO) run ./cmd/trikey-bench -rounds 3 -time 1s
	$(GO) run ./cmd/trikey-bench -rounds 3 -time 1s -checks
	$(GO) run ./cmd/trikey-bench -rounds 3 -time 1s -apart

proto: ## write the Go code of every .proto file anew; it is committed (needs protobuf-compiler)
	@mkdir -p bin && $(GO) build -modfile=tools/go.mod -o bin/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	PATH="$$PWD/bin:$$PATH" protoc --go_out=. --go_opt=module=github.com/trikey/trikey --go-grpc_out=. --go-grpc_opt=module=github.com/trikey/trikey \
	  $$(git ls-files -co --exclude-standard '*.proto')

vuln: ## known vulnerabilities in what we use (asks the Go vulnerability database)
	$(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./...

# What installs the packages in need, for the recipes below.
define install
	if [ -n "$$need" ]; then \
	  command -v apt-get >/dev/null || { echo "install these first: $$need"; exit 1; }; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  command -v $${sudo:-true} >/dev/null || { echo "install these as root first: apt-get install $$need"; exit 1; }; \
	  echo "installing $$need"; \
	  $$sudo apt-get -qq update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $$need >/dev/null; \
	fi
endef

deps: ## install SoftHSM and a C compiler where they are missing (Debian, Ubuntu)
	@need=; \
	[ -n "$$(ls $${TRIKEY_SOFTHSM_MODULE:-/usr/lib/softhsm/libsofthsm2.so} /usr/lib/*/softhsm/libsofthsm2.so 2>/dev/null)" ] || need=softhsm2; \
	echo '#include <stdlib.h>' | $${CC:-gcc} -E - >/dev/null 2>&1 || need="$$need gcc libc6-dev"; \
	$(install)

test-deps: deps ## install what the tests drive too: a software TPM, etcd, network tools, OpenSSL, what Node runs: signed requests, an OpenID Connect provider
	@need=; \
	command -v etcd >/dev/null || need=etcd-server; \
	command -v swtpm >/dev/null || need="$$need swtpm"; \
	{ command -v ip && command -v tc; } >/dev/null || need="$$need iproute2"; \
	[ -n "$$(ls $${TRIKEY_TPM2_PKCS11_MODULE:-/usr/lib/*/libtpm2_pkcs11.so.1} 2>/dev/null)" ] || need="$$need libtpm2-pkcs11-1"; \
	command -v openssl >/dev/null || need="$$need openssl"; \
	command -v node >/dev/null || need="$$need nodejs"; \
	command -v npm >/dev/null || need="$$need npm"; \
	$(install)
	@cd cmd/trikey/testdata/node && { npm ls >/dev/null 2>&1 || npm ci --ignore-scripts --no-audit --no-fund --loglevel=error; }

clean: ## remove what make made
	rm -rf bin .run

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12
