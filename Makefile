# The commands of a checkout. Each installs what it needs into .venv the first time, and again when setup.cfg changes.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DECLARED := setup.cfg pyproject.toml

# The real LLM gateway of the tests, in an environment of its own: nothing of it is ever imported here.
LITELLM := 1.106.2
GATEWAY := .venv-gateway

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help check worker demo test test-gateway chaos bench clean

help:
	@echo "make worker   start the worker with a NATS server of its own; Ctrl-C stops it"
	@echo "make demo     play a real log through a worker and show what became of it"
	@echo "make test     lint, types, import contracts, all tests, coverage"
	@echo "make test-gateway   ask a real LiteLLM proxy, in front of a model that misbehaves (installs 740 MB)"
	@echo "make chaos    kill, cut and freeze real processes while events flow, then count"
	@echo "make bench    measure, beside a peer"
	@echo "make clean    remove the environments, builds and caches; the worker's data in var/ stays"

check:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || \
		{ echo "$(PYTHON) was not found: install Python 3.11 or later, or say where it is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$("$(PYTHON)" -V 2>&1), Python 3.11 or later is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv and ensurepip modules: install them (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

worker: $(VENV)/.runtime
	@exec $(RUN) -m app worker

demo: $(VENV)/.runtime
	@exec $(RUN) tests/demo/run.py

test: $(VENV)/.dev
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-logo
	$(RUN) -m pytest --cov --numprocesses 3 --dist worksteal

test-gateway: $(VENV)/.dev $(GATEWAY)/.litellm-$(LITELLM)
	$(RUN) -m pytest tests/gateway

chaos: $(VENV)/.runtime
	@exec $(RUN) tests/chaos/run.py $(CHAOS)

bench: $(VENV)/.bench
	@exec $(RUN) tests/benchmarks/run.py

clean:
	rm -rf $(VENV) $(GATEWAY) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f .coverage .coverage.*
	find app streams state prompts models tests -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.made: | check
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(DECLARED) $(VENV)/.made
	@echo "installing into $(VENV) ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(DECLARED) $(VENV)/.made
	@echo "installing into $(VENV), with the tools of the tests ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/.bench: $(DECLARED) $(VENV)/.made
	@echo "installing into $(VENV), with the peer of the benchmarks ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

$(GATEWAY)/.litellm-$(LITELLM): | check
	@echo "installing the LiteLLM proxy into $(GATEWAY) ..."
	@"$(PYTHON)" -m venv --clear $(GATEWAY)
	@$(GATEWAY)/bin/python -m pip install --quiet --disable-pip-version-check 'litellm[proxy]==$(LITELLM)'
	@touch $@
