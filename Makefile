# `make` lists the targets. Rust and Go builds run one after the other: two cores do not build both at once any faster.
.NOTPARALLEL:
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo
GO ?= go
# Where cargo builds; a configuration of the user's may say so.
TARGET := $(or $(CARGO_TARGET_DIR),$(shell $(CARGO) metadata --format-version 1 --no-deps 2>/dev/null | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'),$(CURDIR)/target)
MODELS := $(CURDIR)/.models

export DEVCLUSTER_BIN := $(or $(DEVCLUSTER_BIN),$(CURDIR)/.quickstart/bin/devcluster)
export LLMOPS_BIN := $(or $(LLMOPS_BIN),$(TARGET)/debug/llmops)
export LLMOPS_EMBEDDER_DIR := $(or $(LLMOPS_EMBEDDER_DIR),$(MODELS)/all-minilm-l6-v2)
export LLMOPS_MODEL_GGUF := $(or $(LLMOPS_MODEL_GGUF),$(MODELS)/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf)
export LLMOPS_LLAMA_SERVER := $(or $(LLMOPS_LLAMA_SERVER),$(CURDIR)/quickstart/llama-server)
export LLMOPS_MODELS_DIR := $(MODELS)

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- for people

.PHONY: quickstart
quickstart: ## Real answers from a real model on a real Kubernetes, from nothing
	@quickstart/run

.PHONY: quickstart-down
quickstart-down: ## Stop the quickstart and remove its cluster; nothing is left running
	@quickstart/down

# ---- checks

.PHONY: test
test: fmt-check lint devcluster-test argocd-test devcluster models unit assignment-test index-test crds-test chart-test sim browser-test e2e ## Everything that must hold before a change lands

.PHONY: fmt
fmt: ## Format Rust and Go
	$(CARGO) fmt
	gofmt -w $$(git ls-files '*.go')

.PHONY: fmt-check
fmt-check: ## Check the formatting of Rust and Go
	$(CARGO) fmt --check
	test -z "$$(gofmt -l $$(git ls-files '*.go') | tee /dev/stderr)"

.PHONY: lint
lint: ## Clippy and go vet, warnings as errors
	$(CARGO) clippy --all-targets --quiet -- -D warnings
	cd devcluster && $(GO) vet ./...
	cd manifests/argocd && $(GO) vet ./...

.PHONY: unit
unit: models ## Unit tests of the crate
	$(CARGO) test --lib --bins

.PHONY: assignment-test
assignment-test: ## The Python reference in the docs assigns 100,000 units as the code does
	$(CARGO) test --test assignment

.PHONY: index-test
index-test: models ## Index builds, also killed ones, and retrieval servers, on the real embedding model
	$(CARGO) test --test index

.PHONY: crds-test
crds-test: ## The definitions are what the code generates, and their rules work
	$(CARGO) test --test crds

.PHONY: chart-test
chart-test: devcluster ## The charts with default and edge values
	$(CARGO) test --test chart

.PHONY: devcluster-test
devcluster-test: ## devcluster's own tests, on real clusters
	cd devcluster && $(GO) test ./...

.PHONY: argocd-test
argocd-test: ## Argo CD's health checks of the four kinds, in its Lua interpreter
	cd manifests/argocd && $(GO) test ./...

.PHONY: sim
sim: ## The real controllers against a simulated API server, in virtual time
	$(CARGO) test --test sim

SEEDS ?= 1000
.PHONY: soak
soak: ## Random faults for the controllers in the simulation: SEEDS=n (default 1000) or SEEDS=from..to
	LLMOPS_SIM_SEEDS='$(SEEDS)' $(CARGO) test --test sim -- --exact campaign::random_faults_change_nothing --nocapture

.PHONY: sim-replay
sim-replay: ## One case of the simulation again, with its timeline: CASE='…' as a failure prints it
	@LLMOPS_SIM_CASE='$(CASE)' $(CARGO) test --test sim -- --exact campaign::random_faults_change_nothing --nocapture

.PHONY: test-mutants
test-mutants: ## The simulation fails on each planted bug: MUTANTS='…' for some of tests/sim/mutants (minutes each)
	tests/sim/mutants/run $(MUTANTS)

.PHONY: browser-test
browser-test: ## The dashboard in a real browser, wide and narrow, light and dark
	@tests/browser/install-chromium
	$(CARGO) test --test browser

.PHONY: e2e
e2e: build devcluster models ## The whole chain on a devcluster with the real model, and the dashboard over it in a real browser
	@tests/browser/install-chromium
	$(CARGO) test --test e2e

.PHONY: chaos-test
chaos-test: build devcluster models ## Two minutes of kill -9 at random under traffic; nothing acknowledged is lost
	$(CARGO) test --test chaos

.PHONY: chaos
chaos: build devcluster models ## The same for ten minutes; CHAOS_SECONDS=n, CHAOS_SEED=n
	CHAOS_SECONDS=$${CHAOS_SECONDS:-600} $(CARGO) test --test chaos

.PHONY: bench-controller
bench-controller: devcluster ## 200 and 1,000 ModelDeployments beside the same children without an operator
	$(CARGO) build --release
	LLMOPS_BIN=$(TARGET)/release/llmops $(CARGO) bench --bench controller

.PHONY: bench-experiments
bench-experiments: ## Wrong verdicts, units to a decision, users who meet a failing candidate; 2,000 seeded runs
	$(CARGO) bench --bench experiments

# ---- builds

.PHONY: build
build: ## The llmops binary, development profile
	$(CARGO) build

.PHONY: devcluster
devcluster: ## The local Kubernetes, one binary
	@mkdir -p $(dir $(DEVCLUSTER_BIN))
	cd devcluster && $(GO) build -o $(DEVCLUSTER_BIN) .

.PHONY: models
models: ## The language model and the embedding model, pinned and checked, in .models/
	@quickstart/models

.PHONY: crds
crds: ## Write crds/, the chart's copy and docs/fields.md from the code
	$(CARGO) run --quiet -- crds --out crds
	$(CARGO) run --quiet -- crds --reference > docs/fields.md
	cp crds/*.yaml charts/llmops-crds/files/

.PHONY: argocd
argocd: ## Write manifests/argocd/argocd-cm.yaml from the health checks
	cd manifests/argocd && $(GO) test ./... -run TestTheConfigMapHoldsTheScripts -update

.PHONY: manifests
manifests: crds devcluster ## Write manifests/install.yaml from the charts
	@{ echo '# Generated by `make manifests` from the charts with their default values; a test fails on a difference.'; \
	  printf 'apiVersion: v1\nkind: Namespace\nmetadata:\n  name: llmops-system\n'; \
	  for chart in llmops-crds llmops; do $(DEVCLUSTER_BIN) helm template $$chart charts/$$chart --namespace llmops-system; done; \
	} > manifests/install.yaml
