# Each target does its own set-up: a virtual environment in .venv, pinned by constraints.txt, made once.
PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
EXTRAS := test,quality
BIN = $(VENV)/bin
DEMO_ARGS ?=
TEST_ARGS ?=

.PHONY: help setup demo test test-all test-oldest lint clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.ready: setup.cfg $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[$(EXTRAS)]'
	touch $@

setup: $(VENV)/.ready  ## make the virtual environment

demo: setup  ## run the main job offline: noisy pairs -> reference CLIP -> NCU -> tables, plots, card
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --cpu recipes/ncu_demo.py $(DEMO_ARGS)

test: setup  ## run the default tests
	$(BIN)/python -m pytest $(TEST_ARGS)

test-all: setup  ## run the slow tests too
	$(BIN)/python -m pytest -m "slow or not slow" $(TEST_ARGS)

test-oldest:  ## run the default tests with the oldest versions that setup.cfg admits
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt EXTRAS=test

lint: setup  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove the virtual environments and build leftovers (never a run's output)
	rm -rf .venv .venv-oldest build dist *.egg-info .pytest_cache .ruff_cache
