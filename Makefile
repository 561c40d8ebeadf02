# Everything goes through the virtual environment in .venv, which is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Byte code is written at install time, whatever the caller's shell says: it halves every start.
PIP := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

REAL_PARTNERS := airflow prefect dagster

.DEFAULT_GOAL := help
.PHONY: help up dev test test-all test-partners lint bench clean

help: ## Show this
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(VENV)/.runtime ## Start everything: Postgres, a partner, ingestion, the Dagster UI
	@$(BIN)/chm up

dev: $(VENV)/.runtime ## Start the database if need be, and `dagster dev` (after the first `make up`)
	@$(BIN)/chm db start && $(BIN)/dagster dev

test: $(VENV)/.dev lint ## Lint, types, layers, and the tests (minutes)
	@$(BIN)/python -m pytest -m "not slow" -n 2

test-all: $(VENV)/.dev lint ## The same with the long sweeps, and test-partners
	@$(BIN)/python -m pytest -m "not partners" -n 2
	@$(MAKE) --no-print-directory test-partners

# A file of tests shares one server, so that it is a whole file that each of the two workers takes.
test-partners: $(VENV)/.dev $(REAL_PARTNERS:%=.chm/partners/%/venv/.installed) ## Against real Airflow, Prefect, Dagster
	@$(BIN)/python -m pytest -m partners -n 2 --dist loadfile

lint: $(VENV)/.dev ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: $(VENV)/.dev ## Measure ingestion against its limits; writes .chm/bench.json
	@$(BIN)/python -m bench

clean: ## Stop the embedded Postgres and remove .chm and .venv
	@if [ -x $(BIN)/chm ]; then $(BIN)/chm db stop || true; fi
	@rm -rf .chm .venv .env .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "CHM needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 2; }
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python requirements.lock pyproject.toml
	@echo "Installing (about a minute the first time)"
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@echo "Installing what the tests need"
	@$(PIP) --require-hashes -r requirements-dev.lock
	@touch $@

# Each server lives with its own dependencies. --no-deps: the lock is complete, and pins a newer certifi than Prefect's index may have.
.chm/partners/%/venv/.installed: requirements-partners-%.lock | $(VENV)/bin/python
	@echo "Installing a real $*"
	@$(BIN)/python -m venv --clear $(@D)
	@PYTHONDONTWRITEBYTECODE= $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
		--no-deps --require-hashes -r $<
	@touch $@
