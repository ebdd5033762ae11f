# Garrison. `make help` lists the targets; each works on a clean clone (it sets up what it needs first).
#
# The interpreter is the distribution's own, not the first on PATH: hosts run the agent with that one.
SHELL      := /bin/bash
PYTHON     := /usr/bin/python3
VENV       := .venv
BIN        := $(VENV)/bin
CACHE      := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/garrison
PYTEST     := $(BIN)/python -m pytest
C_SOURCES  := $(wildcard wsh/*.c wsh/*.h) wsh/Makefile

export GARRISON_CACHE := $(CACHE)

.PHONY: help setup demo test test-unit test-kernel test-bus test-e2e test-long vm-test soak rounds lint format bench lock clean

help: ## show this
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready wsh/_bin/.ready ## system packages, venv, wshd, stacks, the example's wheels
	@.ci/setup stacks

$(VENV)/.ready: requirements.txt pyproject.toml .ci/setup .ci/packages
	@PYTHON=$(PYTHON) .ci/setup venv
	@touch $@

wsh/_bin/.ready: $(C_SOURCES) | $(VENV)/.ready
	@$(MAKE) --no-print-directory -C wsh all asan
	@touch $@

demo: setup ## stage a real web app, run it, request a page over HTTP, stop it
	@$(BIN)/python -m agent.dev.demo

test: setup test-unit test-kernel test-bus test-e2e ## every test that takes seconds

test-unit: setup ## pure logic: no root, no network
	$(PYTEST) tests/unit

test-kernel: setup ## root and the real kernel, in a network and mount namespace of their own
	$(PYTEST) tests/kernel

test-bus: setup ## the agent with a real nats-server
	$(PYTEST) tests/bus

test-e2e: setup ## the commands, the agent and real apps together
	$(PYTEST) tests/e2e

test-long: setup ## tests that take minutes: the installed package, big stacks, documents, a browser
	@.ci/setup runtimes
	$(PYTEST) tests/long

vm-test: setup ## cgroup v2 on Debian's 6.1 kernel under QEMU (a few minutes)
	@tests/vm/run.sh

soak: setup ## create/destroy, rung and kill tests at ten times their counts
	GARRISON_TEST_SCALE=10 $(PYTEST) tests/kernel -m soak --timeout=3600

rounds: setup ## kernel and bus rooms, ROUNDS times (10), beside a busy program: finds tests that depend on time
	@tests/rounds.sh

bench: setup ## time Garrison, crun and bubblewrap in one run
	$(BIN)/python -m benchmarks

lint: $(VENV)/.ready wsh/_bin/.ready ## ruff, mypy strict, import-linter, the C warnings, cited documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=tests $(BIN)/mypy agent container rootfs_builder wsh benchmarks tests/unit
	@# a run for each: mypy would take their conftest.py for one module
	set -e; for room in tests/kernel tests/bus tests/e2e tests/long tests/vm; do \
	    [ -z "$$(find $$room -name '*.py')" ] || MYPYPATH=tests:$$room $(BIN)/mypy $$room; done
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tests/citations.py

format: $(VENV)/.ready ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.ready ## requirements.txt from pyproject.toml (needs uv)
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
	    --extra dev pyproject.toml -o requirements.txt

clean: ## remove everything that was built in the checkout; the cache of stacks is kept
	rm -rf $(VENV) wsh/_bin build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
