# Penstock. `make` lists the targets. Everything is built without cgo (only the race detector needs it).

GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
PREFIX      ?= /usr/local
CNIBIN      ?= /opt/cni/bin
UNITDIR     ?= /etc/systemd/system
CONFDIR     ?= /etc/penstock
MANDIR      ?= $(PREFIX)/share/man
COMPLETIONS ?= $(PREFIX)/share
# Debian's versions begin with a digit and sort: what has no tag goes by the date of its commit.
COMMITTED    = $(shell TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --format=%cd 2>/dev/null || echo 0)
DEBVERSION   = $(shell echo '$(VERSION)' | sed -E 's/^v//; /^[0-9]+\.[0-9]/!s/^/0~$(COMMITTED)./; s/-/+/g')
FUZZTIME    ?= 10s
BENCHTIME   ?= 1s
SOAKTIME    ?= 10m
KILLS       ?= 1000
ADDS        ?= 200
SEED        ?=

STATICCHECK := $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
# gotestsum prints one line a package, and at the end every skipped test with its reason and every failed one with its output.
TESTSUM     := $(GO) run gotest.tools/gotestsum@v1.13.0 --format pkgname --format-hide-empty-pkg
GOTESTSUM   := $(TESTSUM) --
# The same, but a test that fails runs a second time, alone: on two noisy cores a real daemon can miss a deadline beside another
# one. What passes only then is named at the end, so that it is found and mended; more than eight failures are not repeated.
RERUN       := mkdir -p bin && rm -f bin/rerun && $(TESTSUM) --rerun-fails=1 --rerun-fails-max-failures=8 --rerun-fails-run-root-test --rerun-fails-report=bin/rerun
UNSTEADY     = rc=$$?; if [ -s bin/rerun ]; then echo '==> these failed beside the others and were run again alone (runs, failures):'; cat bin/rerun; fi; exit $$rc
LDFLAGS     := -s -w -X github.com/penstock-net/penstock/forwarder/control.version=$(VERSION)
UNIT        = $$($(GO) list ./... | grep -v /bench)

.DEFAULT_GOAL := help
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory
export CGO_ENABLED ?= 0

say = @printf '==> %s\n' "$(1)"

.PHONY: help build demo test race lint fuzz bench microbench profile matrix soak torture addbench runtime stage install uninstall deb clean need-go need-root need-cc need-paths

# What a target needs, asked for before anything is built.
need-go:
	@command -v $(firstword $(GO)) >/dev/null || { echo "make $(MAKECMDGOALS) needs Go 1.26 or newer in the PATH" >&2; exit 1; }
need-root: need-go
	@[ "$$(id -u)" = 0 ] || { echo "make $(MAKECMDGOALS) makes network namespaces: run it as root" >&2; exit 1; }
	@[ -c /dev/net/tun ] || { echo "make $(MAKECMDGOALS) needs /dev/net/tun: load the kernel module tun" >&2; exit 1; }
need-cc:
	@command -v "$${CC:-gcc}" >/dev/null || { echo "make $(MAKECMDGOALS) needs a C compiler for the race detector: install gcc" >&2; exit 1; }
# What would not survive the shell, sed, abspath and systemd's unit unharmed.
need-paths: export PATHS_ASKED = $(DESTDIR)$(PREFIX)$(CNIBIN)$(UNITDIR)$(CONFDIR)$(MANDIR)$(COMPLETIONS)
need-paths:
	@case "$$PATHS_ASKED" in *[[:space:]\"\'\`\\\$$\|\&%\;]*) \
	  echo "make $(MAKECMDGOALS): DESTDIR, PREFIX, CNIBIN, UNITDIR, CONFDIR, MANDIR and COMPLETIONS may have no space, quote or any of | & % ; \\ \$$ in them: choose other directories" >&2; exit 1;; esac

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

build: need-go ## bin/penstockd, bin/penstockctl and bin/penstock (the CNI plugin)
	$(call say,building $(VERSION) into bin/)
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/penstockd ./cmd/penstockctl ./cmd/penstock

demo: need-root build ## two nodes, four pods, udp, vxlan and ipip: everything shown once (root)
	@PENSTOCKD=$(CURDIR)/bin/penstockd $(GO) run ./bench/demo

# An old runtime for the test that needs one: only where it is asked for (LAB_INSTALL=1, as .ci/run does), takes seconds, and may fail.
runtime:
	@if [ -n "$$LAB_INSTALL" ] && command -v apt-get >/dev/null && ! { command -v ctr && command -v busybox && command -v iptables; } >/dev/null; then \
	  printf '==> installing containerd, busybox and iptables for the tests that need them\n'; \
	  timeout 60 sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends containerd busybox-static iptables' >/dev/null 2>&1 || \
	    echo "they are not to be had: their tests will be skipped" >&2; \
	fi

test: need-root lint build runtime ## vet, staticcheck, unit tests and end-to-end tests of real daemons (root)
	$(call say,unit tests)
	@$(RERUN) --packages "$(UNIT)" -- -count=1 -timeout 5m; $(UNSTEADY)
	$(call say,end-to-end tests: real daemons in network namespaces)
	@export LAB_REQUIRED=1 PENSTOCKD=$(CURDIR)/bin/penstockd; $(RERUN) --packages ./bench/... -- -count=1 -p 1 -timeout 15m; $(UNSTEADY)

# A raced program sleeps for a second when it ends, for races that are yet to be told: a plugin's whole life, fifty times over.
race matrix: export GORACE = atexit_sleep_ms=0
race: export CGO_ENABLED = 1
race: need-root need-cc ## unit tests and end-to-end tests with the race detector, daemons included (root)
	$(call say,unit tests with -race)
	@$(GOTESTSUM) -race -count=1 -timeout 15m $(UNIT)
	$(call say,end-to-end tests with -race)
	@LAB_REQUIRED=1 LAB_RACE=1 PENSTOCKD= $(GOTESTSUM) -race -count=1 -p 1 -timeout 30m ./bench/...

lint: need-go ## gofmt, go vet, staticcheck
	$(call say,gofmt and go vet and staticcheck)
	@out=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')); [ -z "$$out" ] || { echo "gofmt would change:" >&2; echo "$$out" >&2; exit 1; }
	@$(GO) vet ./...
	@$(STATICCHECK) ./...

# An input that reaches something new is made smaller for a second at most: by itself Go takes a minute for each, and a target so
# spends nearly all of its time (FuzzMerge: 9,000 executions in two minutes, against a million).
fuzz: need-go ## every fuzz target for FUZZTIME (10s) each; ONLY chooses by a pattern
	@failed=; packages=$$($(GO) list ./...) || exit 1; for p in $$packages; do \
	  list=$$($(GO) test -list '^Fuzz' $$p 2>&1) || { echo "$$list"; failed="$$failed $$p"; continue; }; \
	  for f in $$(echo "$$list" | grep '^Fuzz'); do \
	    echo "$$p $$f" | grep -q -- '$(or $(ONLY),.)' || continue; \
	    echo "==> $$p $$f"; \
	    if out=$$($(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s $$p 2>&1); then echo "$$out" | tail -n 3; else echo "$$out"; failed="$$failed $$f"; fi; \
	  done; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

# The side-by-side laboratory. docs/performance.md says what the variables mean and how to read what comes out.
sidebyside = @$(GO) build -o bin/ ./bench/sidebyside
SIDEBYSIDE = PENSTOCKD='$(CURDIR)/bin/penstockd' bin/sidebyside $(if $(FULL),-full) $(if $(ONLY),-only '$(ONLY)') $(if $(N),-n $(N)) \
  $(if $(SECONDS),-seconds $(SECONDS)) $(if $(BURST),-burst $(BURST)) $(if $(TCP),-tcp '$(TCP)') $(if $(WEIGHT),-weight $(WEIGHT)) $(if $(TOOL),-tool '$(TOOL)') $(if $(YAML),-yaml '$(YAML)') $(if $(FRESH),-fresh) $(if $(LIST),-list)

bench: need-root build ## against kernel VXLAN, the rows with bars (45 min); FULL=1 all; ONLY='veth whole udp-64*' N=5 SECONDS=1 (root)
	$(sidebyside)
	@$(SIDEBYSIDE)

profile: need-root build ## CPU profiles of the daemons under each of those loads, with a short top list; ONLY, FULL as above (root)
	$(sidebyside)
	@$(SIDEBYSIDE) -profile

microbench: need-go ## every Go benchmark for BENCHTIME (1s) each, with allocations
	$(call say,benchmarks)
	@$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) $(UNIT)

# The matrix goes slice by slice. What has passed stands in bin/matrix with the packet path's trees, so that a run that was broken
# off goes on where it was; ONLY chooses slices by a pattern, FRESH=1 forgets what has passed. bin/matrix.json tells meanwhile how far it is.
# All other tests, which take 40 minutes together: others/rest has those that are in none of the rooms before it.
OTHERS         := cni interop input load native
others.cni     := ^Test(CNI|Adopt|Collect|Descriptors)
others.interop := ^Test(Interop|Crossing|Service|NodePort|Outside|Probes)
others.input   := ^Test(BadInput|Truncated|Floods)
others.load    := ^Test(ParallelTCP|Routes|PrefixMoves|Reload|Shape|Fairness|Unreachable|Soak)
others.native  := ^Test(Native|Whole)
others.all     := $(subst $(eval) ,|,^TestMatrix$$ $(foreach o,$(OTHERS),$(others.$o)))
MATRIX         := $(foreach o,vxlan vxlan_over_IPv6 udp udp_over_IPv6 ipip,$(foreach k,whole tso cut,$o/$k)) $(OTHERS:%=others/%) others/rest
PATHTREES       = $$(git rev-parse HEAD:forwarder HEAD:ring HEAD:encap HEAD:table | sha1sum | cut -c1-12)

matrix: export CGO_ENABLED = 1
matrix: need-root need-cc ## end-to-end tests in all combinations of encapsulation, underlay, switches and workers, with -race (root, long); ONLY, FRESH=1
	$(call say,the matrix: end-to-end tests in all combinations and with -race)
	@mkdir -p bin; [ -z "$(FRESH)" ] || rm -f bin/matrix; touch bin/matrix; trees=$(PATHTREES); failed=; \
	for s in $(MATRIX); do \
	  echo "$$s" | grep -q -- '$(or $(ONLY),.)' || continue; \
	  ! grep -qx "$$trees $$s" bin/matrix || { echo "==> $$s has passed before"; continue; }; \
	  pk=./bench/e2e; case $$s in \
	    others/rest) tests='-skip $(others.all)';; \
	    others/*) $(foreach o,$(OTHERS),$o='$(others.$o)';) eval "tests=\"-run \$$$${s#*/}\"";; \
	    *) tests="-run ^TestMatrix$$/^$${s%/*}$$/^$${s#*/}$$";; esac; \
	  [ $$s != others/cni ] || pk="$$pk ./cni"; \
	  printf '==> %s %s\n' "$$(date +%T)" "$$s"; \
	  if LAB_REQUIRED=1 LAB_RACE=1 PENSTOCKD= E2E_MATRIX=1 $(TESTSUM) --jsonfile bin/matrix.json -- -race -count=1 -p 1 -timeout 60m $$tests $$pk; then echo "$$trees $$s" >>bin/matrix; else failed="$$failed $$s"; fi; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

soak: need-root build ## traffic, attachments and reloads for SOAKTIME (10m) (root)
	$(call say,soak for $(SOAKTIME))
	@LAB_REQUIRED=1 PENSTOCKD=$(CURDIR)/bin/penstockd LAB_SOAK=$(SOAKTIME) $(GO) test -count=1 -timeout 0 -v -run '^TestSoak$$' ./bench/e2e

torture: need-root build ## the plugin and the daemon killed KILLS (1000) times while pods come and go; SEED repeats a run (root)
	$(call say,torture: $(KILLS) kills)
	@LAB_REQUIRED=1 PENSTOCKD=$(CURDIR)/bin/penstockd KILLS=$(KILLS) SEED=$(SEED) $(GO) test -count=1 -timeout 60m -v ./bench/torture

addbench: need-root build ## how long the plugin's ADD takes, alone and 50 at once, ADDS (200) of each (root)
	$(call say,$(ADDS) ADDs of each kind)
	@LAB_REQUIRED=1 PENSTOCKD=$(CURDIR)/bin/penstockd ADDS=$(ADDS) $(GO) test -run '^$$' -bench '^BenchmarkADD$$' -benchtime 1x -timeout 30m ./bench/e2e

# What is installed, and where: staged once under bin/stage, from which install copies, uninstall removes and deb packs.
STAGE := bin/stage
stage: need-paths build
	@rm -rf '$(STAGE)'
	@install -D -m 755 bin/penstockd '$(STAGE)$(PREFIX)/sbin/penstockd'
	@install -D -m 755 bin/penstockctl '$(STAGE)$(PREFIX)/bin/penstockctl'
	@install -D -m 755 bin/penstock '$(STAGE)$(CNIBIN)/penstock'
	@install -d '$(STAGE)$(UNITDIR)' '$(STAGE)$(CONFDIR)' '$(STAGE)$(MANDIR)' '$(STAGE)$(COMPLETIONS)/bash-completion/completions' \
	  '$(STAGE)$(COMPLETIONS)/zsh/site-functions' '$(STAGE)$(COMPLETIONS)/fish/vendor_completions.d'
	@sed 's|/usr/local/sbin|$(PREFIX)/sbin|; s|/usr/local/bin|$(PREFIX)/bin|; s|/opt/cni/bin|$(CNIBIN)|; s|/etc/penstock|$(CONFDIR)|' \
	  cmd/penstockd/penstockd.service >'$(STAGE)$(UNITDIR)/penstockd.service'
	@bin/penstockctl config example >'$(STAGE)$(CONFDIR)/penstock.yaml.example'
	@bin/penstockctl completion bash >'$(STAGE)$(COMPLETIONS)/bash-completion/completions/penstockctl'
	@bin/penstockctl completion zsh >'$(STAGE)$(COMPLETIONS)/zsh/site-functions/_penstockctl'
	@bin/penstockctl completion fish >'$(STAGE)$(COMPLETIONS)/fish/vendor_completions.d/penstockctl.fish'
	@bin/penstockctl man '$(STAGE)$(MANDIR)' --penstockd bin/penstockd --penstock bin/penstock
	@for f in LICENSE CHANGELOG.md docs/monitoring/alerts.yaml docs/monitoring/dashboard.json; do install -D -m 644 $$f '$(STAGE)$(PREFIX)/share/doc/penstock/'$$(basename $$f) || exit 1; done
	@find '$(STAGE)' -type d -exec chmod 755 {} + && find '$(STAGE)' -type f ! -perm 755 -exec chmod 644 {} +

install: stage ## into PREFIX (/usr/local), CNIBIN (/opt/cni/bin), UNITDIR, CONFDIR; DESTDIR is honoured
	$(call say,installing into $(DESTDIR)$(PREFIX))
	@cd '$(STAGE)' && find . -type f | sed 's|^\./||' | while read -r f; do install -D -m "$$(stat -c %a "$$f")" "$$f" '$(abspath $(DESTDIR))/'"$$f" || exit 1; done
	@echo "next: copy $(CONFDIR)/penstock.yaml.example to penstock.yaml beside it, edit it, then: systemctl enable --now penstockd"

uninstall: stage ## exactly what install put there; your configuration stays (before: penstockctl cni uninstall, stop the daemon, penstockd --cleanup)
	$(call say,uninstalling from $(DESTDIR)$(PREFIX))
	@cd '$(STAGE)' && find . -type f | sed 's|^\./||' | while read -r f; do rm -f '$(abspath $(DESTDIR))/'"$$f" || exit 1; done
	@for d in '$(DESTDIR)$(CONFDIR)' '$(DESTDIR)$(PREFIX)/share/doc/penstock'; do [ ! -d "$$d" ] || rmdir --ignore-fail-on-non-empty "$$d"; done

deb: ## bin/penstock_VERSION_ARCH.deb, of the same files under /usr (needs dpkg-deb)
	@command -v dpkg-deb >/dev/null || { echo "make deb needs dpkg-deb: install dpkg" >&2; exit 1; }
	@$(MAKE) stage PREFIX=/usr UNITDIR=/lib/systemd/system CONFDIR=/etc/penstock COMPLETIONS=/usr/share MANDIR=/usr/share/man STAGE=bin/deb VERSION='$(VERSION)'
	@mv bin/deb/usr/share/zsh/site-functions bin/deb/usr/share/zsh/vendor-completions
	@mv bin/deb/usr/share/doc/penstock/LICENSE bin/deb/usr/share/doc/penstock/copyright
	@find bin/deb/usr/share/man -type f -exec gzip -9n {} +
	@install -d -m 755 bin/deb/DEBIAN && install -m 755 cmd/penstockd/debian/postinst cmd/penstockd/debian/prerm cmd/penstockd/debian/postrm bin/deb/DEBIAN/
	@sed "s/@VERSION@/$(DEBVERSION)/; s/@ARCH@/$$(dpkg --print-architecture)/; s/@SIZE@/$$(du -sk bin/deb | cut -f1)/" cmd/penstockd/debian/control >bin/deb/DEBIAN/control
	@dpkg-deb --root-owner-group --build bin/deb 'bin/penstock_$(DEBVERSION)_'"$$(dpkg --print-architecture)"'.deb' >/dev/null
	$(call say,bin/penstock_$(DEBVERSION)_$$(dpkg --print-architecture).deb)

clean: ## remove bin/
	rm -rf bin
