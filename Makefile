# Everything runs in the virtual environment .venv, which is created on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Byte code is compiled at install time, whatever the caller's environment says: this halves startup time.
PIP := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

REAL_PARTNERS := airflow airflow-3.0 airflow-2.11 prefect dagster

.DEFAULT_GOAL := help
.PHONY: help up dev test test-pythons test-all test-partners lint bench wheel clean

help: ## Show this help
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(VENV)/.runtime ## Start everything: Postgres, a partner, ingestion, the Dagster UI
	@$(BIN)/chm up

dev: $(VENV)/.runtime ## Start the database and the sandbox partner, and run `dagster dev`
	@$(BIN)/chm dev

test: $(VENV)/.dev lint ## Lint, type checks, layers and tests (takes minutes)
	@$(BIN)/python -m pytest -m "not slow" -n 2

test-pythons: $(VENV)/.dev ## The fast tests on Python 3.12 and 3.13, where this machine has them
	@.ci/pythons chm_dagster_tests/unit chm_dagster_tests/cli

test-all: $(VENV)/.dev lint ## All tests, including the slow ones and test-partners
	@$(BIN)/python -m pytest -m "not partners" -n 2
	@$(MAKE) --no-print-directory test-partners

# The tests of one file share a server, so each of the two workers takes whole files.
test-partners: $(VENV)/.dev $(REAL_PARTNERS:%=.chm/partners/%/venv/.installed) ## Tests against real Airflow, Prefect and Dagster servers
	@$(BIN)/python -m pytest -m partners -n 2 --dist loadfile

lint: $(VENV)/.dev ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: $(VENV)/.dev ## Measure speed as ratios; writes .chm/bench.json
	@$(BIN)/python -m bench

wheel: $(VENV)/.runtime ## Build the wheel into dist/
	@rm -rf dist
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean: ## Stop the embedded Postgres and remove .chm and .venv
	@if [ -x $(BIN)/chm ]; then $(BIN)/chm db stop || true; fi
	@rm -rf .chm .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "CHM needs Python 3.11 or newer. Choose one with: make PYTHON=python3.12 ..."; exit 2; }
	@echo "Creating a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python requirements.lock pyproject.toml
	@echo "Installing (takes about a minute the first time)"
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@echo "Installing the test dependencies"
	@$(PIP) --require-hashes -r requirements-dev.lock
	@touch $@

# Each server has its own dependencies. --no-deps: the lock is complete.
.chm/partners/%/venv/.installed: requirements-partners-%.lock | $(VENV)/bin/python
	@echo "Installing a real $* server"
	@$(BIN)/python -m venv --clear $(@D)
	@PYTHONDONTWRITEBYTECODE= $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
		--no-deps --require-hashes -r $<
	@touch $@
