# Few targets; each says what it does. `make help` lists them with what they need and how long they take.
SHELL := /bin/bash
CACHE ?= $(if $(EBPF_SCALER_CACHE),$(EBPF_SCALER_CACHE),$(CURDIR)/.cache)
export EBPF_SCALER_CACHE := $(CACHE)
export PATH := $(CACHE)/tools/bin:$(PATH)
# What `demo` and `bench` pass on, for example: make demo ARGS="--json out.json"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-down test test-unit test-long kernels fuzz lint bench generate images clean

help: ## List the targets
	@echo "Times are for 2 cores: on an empty cache / on a warm one."
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install and build what the rest needs, once (root on Debian, or a list of what is missing; 15 min / 2 s)
	@hack/setup/all.sh

demo: setup ## Show the main job live on a real Kubernetes with real load, ending with numbers (docker, or root on Linux; 25 / 6 min)
	@cargo xtask demo $(ARGS)

demo-down: ## Remove the demo's cluster and everything it made
	@cargo xtask cluster down --name demo

test: setup ## Run all tests: unit, fuzz (short), kernel, API contract, and end to end on a real cluster (root on Linux; 35 / 15 min)
	@cargo xtask test $(ARGS)

test-unit: ## Run the tests that need neither root nor a cluster (5 / 1 min)
	@cargo xtask test unit

test-long: setup ## Run long variants: many times the random cases and scenarios, 100,000 connections, 5 minutes of fuzzing, every kernel (root, Debian; hours)
	@cargo xtask test unit --long
	@cargo xtask test differential --long
	@cargo xtask test kernel --long
	@cargo xtask test keda
	@cargo xtask fuzz
	@cargo xtask kernels

kernels: setup ## Run the kernel tests in Debian's 6.1, 6.12 and newest kernels, in an emulator (Debian; 5 to 15 s a test; ARGS="--kernel 6.1 --filter NAME --arch arm64")
	@cargo xtask kernels $(ARGS)

fuzz: ## Fuzz everything that reads bytes from others (5 minutes, or ARGS="--seconds N --target NAME")
	@cargo xtask fuzz $(ARGS)

lint: setup ## rustfmt, clippy with warnings denied, cargo-deny, shell syntax, generated files up to date (8 / 2 min)
	@cargo xtask lint

bench: setup ## Measure reaction time beside the peer, on a real cluster (root or docker; 10 min); more: cargo xtask bench --help
	@cargo xtask bench reaction $(if $(ARGS),$(ARGS),--steps 5)

generate: ## Write the generated files: CRD, flag reference (1 min)
	@cargo xtask generate

images: setup ## Build the OCI images without a daemon, to $(CACHE)/images (6 / 1 min)
	@cargo xtask image

clean: ## Remove test clusters, the cache and build results
	@cargo xtask cluster down --all || true
	rm -rf $(CACHE) target ebpf/programs/target
