# diskhook. `make help` lists the targets.
# SPDX-License-Identifier: Apache-2.0

PREFIX      ?= /usr
bindir      ?= $(PREFIX)/bin
libexecdir  ?= $(PREFIX)/libexec
sysconfdir  ?= /etc
datadir     ?= $(PREFIX)/share
mandir      ?= $(datadir)/man
# systemd, udev and tmpfiles look here, whatever PREFIX is.
systemdir   ?= /usr/lib
# VDSM looks for hooks here and nowhere else.
vdsmdir     ?= /usr/libexec/vdsm
DESTDIR     ?=

GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME    ?= 30s

# libvirt_dlopen finds libvirt at run time: no headers to build with, no .so to start with.
TAGS        ?= libvirt_dlopen
out         ?= bin
dist        ?= dist
programs    := $(libexecdir)/diskhook
LDFLAGS      = -s -w -X main.version=$(VERSION)
BUILD        = $(GO) build -trimpath -buildvcs=false

GOLANGCI_LINT := bin/tools/golangci-lint-v2.15.0
NFPM          := bin/tools/nfpm-v2.45.0

# A tier's tests are in the packages that have a file with its build tag.
tagged = $(or $(shell grep -rlE --include='*_test.go' '^//go:build.*\<$(1)\>' cmd hooks storage xmlrewrite contrib | \
	xargs -r dirname | sort -u | sed 's,^,./,'),$(error no package has a test with the build tag $(1)))

.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

##@ Use

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: ## a disk copied, reused and recovered, on this machine and without a trace
	@contrib/demo/demo

.PHONY: build
build: $(addprefix $(out)/,diskhook qemu-hook diskhook-helper diskhook-etcd diskhook-domain) ## the programs, in bin/

# `go build` knows best what is up to date.
.PHONY: $(addprefix $(out)/,diskhook qemu-hook diskhook-helper diskhook-etcd diskhook-domain)
$(out)/diskhook: LDFLAGS += -X main.domainProgram=$(programs)/diskhook-domain -X main.etcdProgram=$(programs)/diskhook-etcd
$(out)/qemu-hook $(out)/diskhook-helper $(out)/diskhook-etcd: LDFLAGS += -X main.program=$(bindir)/diskhook
$(out)/diskhook $(out)/qemu-hook $(out)/diskhook-helper $(out)/diskhook-etcd:
	CGO_ENABLED=0 $(BUILD) -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $@ ./cmd/$(@F)
$(out)/diskhook-domain:
	CGO_ENABLED=1 $(BUILD) -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $@ ./cmd/$(@F)

##@ Test

.PHONY: test
test: ## install what the tiers need and run all of them (SKIP_E2E=1 leaves one out)
	@contrib/setup check integration e2e
	@$(MAKE) --no-print-directory build
	@contrib/tiers --background e2e check scripts integration e2e

.PHONY: check
check: need-check fmt vet lint unit ## tier 1: format, vet, lint, unit and golden tests, fuzz seeds; no root

.PHONY: need-check
need-check:
	@contrib/setup check

.PHONY: fmt
fmt:
	@files=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
		[ -z "$$files" ] || { echo "not as gofmt writes it:"; echo "$$files"; exit 1; } >&2

.PHONY: vet
vet:
	$(GO) vet -tags $(TAGS) ./...
	$(GO) vet -tags $(TAGS),testroot,integration,e2e ./...

.PHONY: lint
lint: $(GOLANGCI_LINT)
	$(GOLANGCI_LINT) run --allow-parallel-runners ./...
	$(GOLANGCI_LINT) run --allow-parallel-runners --build-tags $(TAGS),testroot,integration,e2e ./...
	contrib/lint-selftest $(GOLANGCI_LINT)
	shellcheck $$(git ls-files -co --exclude-standard | xargs awk 'FNR == 1 && /^#!\/bin\/(ba)?sh/ { print FILENAME } { nextfile }')
	shellcheck -s bash contrib/completion/diskhook.bash
	mandoc -T lint -W warning contrib/man/*.[58]

.PHONY: unit
unit:
	$(GO) test -tags $(TAGS) -timeout 60m ./...

.PHONY: scripts
scripts: ## tier 2: fake tools, kills at every step; no root with SKIP_SMALL_FILESYSTEM=1
	$(GO) test -tags $(TAGS),testroot -timeout 60m ./...

.PHONY: integration
integration: build ## tier 3: real qemu-img, LVM metadata, a private libvirtd; root
	DISKHOOK_LIBVIRT_TESTS=$${DISKHOOK_LIBVIRT_TESTS:-$$(contrib/libvirt-tests)} \
	$(GO) test -tags $(TAGS),testroot,integration -count=1 -timeout 60m $(call tagged,integration)

.PHONY: e2e
e2e: build ## tier 4: a guest with its own kernel, real device-mapper and LVM; root
	$(GO) test -tags $(TAGS),e2e -count=1 -p 1 -timeout 88m $(call tagged,e2e)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (30s)
	@contrib/fuzz $(FUZZTIME)

.PHONY: bench
bench: build ## hook call, rewrite, ready path, fill: ratios side by side (PARTS=)
	@contrib/setup bench
	@$(GO) run ./contrib/bench $(PARTS)

##@ Install

# What the scripts behind these targets read. Not exported to the others: a make
# that runs tests of make must not tell it where to install.
installing := install install-vdsm uninstall packages
$(foreach v,bindir libexecdir sysconfdir datadir mandir systemdir vdsmdir DESTDIR VERSION out dist,\
	$(eval $(installing): export $(v) := $($(v))))

.PHONY: install
install: build ## programs, libvirt hook, manuals (DESTDIR= PREFIX=)
	contrib/install/install host

.PHONY: install-vdsm
install-vdsm: install ## and the VDSM hook points, sudoers and udev rule
	contrib/install/install vdsm

.PHONY: uninstall
uninstall: ## remove what install and install-vdsm put there, and nothing else
	contrib/install/install --remove host vdsm

.PHONY: packages
packages: $(NFPM) ## deb and rpm, in dist/
	contrib/packages/build $(NFPM)

.PHONY: clean
clean: ## remove bin/ and dist/
	rm -rf bin dist

# Tools of ours are built from pinned versions and cached by go itself.
bin/tools/golangci-lint-%:
	GOBIN=$(CURDIR)/bin/tools $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$*
	mv bin/tools/golangci-lint $@

bin/tools/nfpm-%:
	GOBIN=$(CURDIR)/bin/tools $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$*
	mv bin/tools/nfpm $@
