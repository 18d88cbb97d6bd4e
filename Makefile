# Playhead's verbs. Each sets up what it needs: `make run` works on a machine with Python 3.11+ and nothing else.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
BIN := .venv/bin
RUNTIME := .venv/.runtime-installed
DEV := .venv/.dev-installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: help run test test-demo test-gpu lint format types imports check bench bench-quality bench-telemetry clean
help:  ## show the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Playhead needs Python 3.11 or newer; none was found. Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Playhead needs Python 3.11 or newer; $(PYTHON) is {v.major}.{v.minor}. Name a newer one: make PYTHON=/path/to/python3.11")'
	"$(PYTHON)" -m venv .venv

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing pinned packages into .venv (some minutes the first time) ..."
	$(PIP) --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing pinned packages and development tools into .venv (some minutes the first time) ..."
	@# pip compiles what it installs on one core; this does on all. Some packages hold files that are no Python 3.
	$(PIP) --no-compile --editable '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib >/dev/null 2>&1 || true
	@touch $@ $(RUNTIME)

run: $(RUNTIME)  ## bring up everything on this machine and show a real home page; Ctrl-C ends it
	@exec $(BIN)/playhead up

test: $(DEV)  ## run all tests that need no GPU, real Valkey and real Ray included
	@# Two workers for all tests; for those that ARGS names one process starts sooner (ARGS="-n 2 tests/serve" for two).
	@# OpenBLAS's and OpenMP's threads spin while they wait: on shared cores tests with scipy take twice as long with
	@# them, and those with torch several times as long.
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(or $(ARGS),-n 2)

test-demo: $(DEV)  ## the demo of learning, shortened: a shift of taste, an update, a poisoned version; a quarter of an hour
	PLAYHEAD_TEST_DEMO=1 $(BIN)/python -m pytest -s -o faulthandler_timeout=1800 tests/deployments/demos/test_learning.py

test-gpu: $(DEV)  ## on an NVIDIA GPU: parity, latency, throughput, refit; says so in one line without one
	@if command -v nvidia-smi >/dev/null 2>&1; then $(PIP) --editable '.[dev,gpu]'; fi
	@$(BIN)/python -m tests.gpu.suite $(ARGS)

lint: $(DEV)  ## ruff: rules, docstrings, formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(DEV)  ## mypy, strict
	$(BIN)/mypy

imports: $(DEV)  ## import rules: down only
	$(BIN)/lint-imports

check: lint types imports  ## all that reads the code without running it

bench: $(RUNTIME)  ## no-op app, naive graph and Playhead, measured in one run
	$(BIN)/python -m deployments.bench

bench-quality: $(RUNTIME)  ## frames a second of quality, by backend and size, in one run
	$(BIN)/python -m deployments.bench_quality

bench-telemetry: $(RUNTIME)  ## cost of a report by step on one core, and reports a second over HTTP
	$(BIN)/python -m deployments.bench_telemetry $(ARGS)

clean:  ## stop what runs, remove .venv, state and caches
	@if [ -x $(BIN)/playhead ]; then $(BIN)/playhead down || true; fi
	rm -rf .venv .playhead .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info build
