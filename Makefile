# `make` alone prints this list.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-full faults check bench lock modules clean

BIN := .venv/bin
# make test ARGS="tests/unit -k aggregate"
ARGS ?=
# Test files that run at a time. Those of tests/stack_cpu start up to 15 processes and take some 4 GB each.
TEST_WORKERS ?= 2
# What libraries warn of as they are imported, outside of any test, in processes that tests start, and at the end of a process
# that has loaded a SWIG library, after the closing line of the tests.
QUIET := ignore::UserWarning,ignore::FutureWarning,ignore:builtin type:DeprecationWarning
PYTEST := PYTHONWARNINGS="$(QUIET)" $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --durations=20

# pyright and its node come in wheels of the lock: use those, and do not ask the network for a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PYRIGHT_PYTHON_GLOBAL_NODE := 0

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: ## create .venv from docker/requirements-cpu.lock; immediate when nothing changed
	@docker/setup_cpu.sh

quickstart: setup ## train a small model on this machine's CPU with the whole stack
	@$(BIN)/hybridflow train --config configs/quickstart.toml

test: setup ## the tests that this machine can run (GPU tests skip themselves on a CPU), but for the slow rest
	@$(PYTEST) $(ARGS)

test-full: setup ## the slow rest: tests marked "full"
	@$(PYTEST) -m full $(ARGS)

faults: setup ## random kills, stops and full disks over short runs.  make faults ARGS="--campaign kills --count 30"
	@$(BIN)/python tests/faults/campaign.py $(ARGS)

check: setup ## lint, formatting, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --warnings
	@$(BIN)/lint-imports

bench: setup ## measure memory and speed with tests/bench/*.py, one JSON line each
	@for script in tests/bench/*.py; do echo "$$script" >&2; $(BIN)/python $$script || exit; done

lock: ## write the hashes of each line of docker/requirements-cpu.lock again, after a line was added or changed
	@$(BIN)/python docker/lock.py renew

modules: ## write docs/modules.md from the first lines of docstrings
	@$(BIN)/python tests/architecture/module_table.py --write

clean: ## remove build products and caches; keeps .venv and runs/
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find hybridflow megatron_ext tests -name __pycache__ -type d -prune -exec rm -rf {} +
