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
# tests drive the built binary from outside, where it would see nothing.
RACE := ./api/... ./hsm/... ./internal/... ./keystore/... ./kms/... ./sdk/...

FUZZTIME ?= 30s

.PHONY: build demo run test lint fuzz bench vuln deps clean help

build: deps ## build bin/trikey
	$(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/trikey ./cmd/trikey

demo: build ## run the main job in a throw-away directory
	bin/trikey demo

run: build ## run a service to try by hand, in .run; Ctrl-C ends it
	bin/trikey demo --dir .run --serve --base-port 7443

test: deps ## run every test
	$(GO) test -race -timeout 15m $(RACE)
	$(GO) test -timeout 15m ./cmd/...

lint: ## formatting, vet, linters, import direction, module files
	@unformatted=$$($(TOOL) gofumpt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not formatted with gofumpt:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(TOOL) golangci-lint run ./...
	$(GO) mod tidy -diff
	$(GO) mod verify

fuzz: ## run every fuzz target for FUZZTIME
	@for package in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz'); do \
	    echo "$$package $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
	  done; \
	done

bench: build ## benchmarks beside the code, then the service from outside
	$(GO) test -run '^$$' -bench . -benchmem ./hsm/alg ./hsm/p11 ./hsm/soft ./internal/envelope ./keystore/bolt ./api
	$(GO) run ./cmd/trikey-bench

vuln: ## known vulnerabilities in what we use (asks the Go vulnerability database)
	$(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./...

deps: ## install SoftHSM and a C compiler where they are missing (Debian, Ubuntu)
	@need=; \
	ls $${TRIKEY_SOFTHSM_MODULE:-/usr/lib/softhsm/libsofthsm2.so} /usr/lib/*/softhsm/libsofthsm2.so >/dev/null 2>&1 || \
	  [ -n "$$(ls $${TRIKEY_SOFTHSM_MODULE:-/usr/lib/softhsm/libsofthsm2.so} /usr/lib/*/softhsm/libsofthsm2.so 2>/dev/null)" ] || need="softhsm2"; \
	command -v $${CC:-gcc} >/dev/null || need="$$need gcc libc6-dev"; \
	if [ -n "$$need" ]; then \
	  command -v apt-get >/dev/null || { echo "install these first: $$need"; exit 1; }; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  command -v $${sudo:-true} >/dev/null || { echo "install these as root first: apt-get install $$need"; exit 1; }; \
	  echo "installing $$need"; \
	  $$sudo apt-get -qq update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $$need >/dev/null; \
	fi

clean: ## remove what make made
	rm -rf bin .run

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 8
