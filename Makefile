# What can be done here. `make` alone prints this list from the comments after `##`.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/.made

# One file's tests stay on one worker: they share the etcd, registry or agents that the file started. Most of their time they
# wait, so there are twice as many workers as cores; the longest files come first (tests/conftest.py). Whole fleets with real
# clocks run side by side here: what fails once is tried once more, and the closing lines name it.
PYTEST_ARGS ?= -n 4 --dist loadfile --no-loadscope-reorder --reruns 1
BENCH_ARGS ?=
SOAK_ARGS ?= -n 2 --dist load
MUTATE_ARGS ?= --write docs/mutations.md

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## install the system's packages that tests and demo use (as root, with apt-get; otherwise name them)
	@tools/system-packages "$(PYTHON)"

.PHONY: venv
venv: $(MADE) ## make the virtual environment .venv (made anew when pyproject.toml has changed)

# README.md, LICENSE and schemas/ are part of the package's metadata and content, but the package is installed in place:
# only pyproject.toml says what is in the environment.
$(MADE): pyproject.toml tools/make-venv
	@tools/make-venv "$(PYTHON)" "$(VENV)"
	@touch $@

.PHONY: test
test: setup venv ## run all tests but the long ones (what needs a program that is missing is skipped, by name)
	$(BIN)/python -m pytest -m "not soak" $(PYTEST_ARGS)

.PHONY: demo
demo: setup venv ## three servers on one machine follow a git repository; under two minutes, leaves nothing behind
	@$(BIN)/python examples/three-servers/demo.py

.PHONY: lint
lint: venv ## ruff, mypy, and the layers of the imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	MYPYPATH=examples/three-servers $(BIN)/mypy examples/three-servers/*.py examples/from-neco/*.py
	$(BIN)/lint-imports

.PHONY: bench
bench: setup venv ## how fast, beside what people use today: prints a table, writes bench.json
	$(BIN)/python -m bench $(BENCH_ARGS)

.PHONY: soak
soak: setup venv ## the long tests
	HYPOTHESIS_PROFILE=random $(BIN)/python -m pytest -m soak $(SOAK_ARGS)

.PHONY: mutations
mutations: setup venv ## break the program on purpose, one way after the other: which test notices each
	$(BIN)/python tools/mutate.py $(MUTATE_ARGS)

.PHONY: clean
clean: ## remove what the other targets made
	rm -rf $(VENV) build dist bench.json .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
