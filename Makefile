# kdcache: what a developer types. Everything is installed into .venv; nothing else of the machine is touched.
PYTHON ?= python3
BIN = .venv/bin
# Tests run in two processes at once; more threads in each would only wait for each other.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: help setup demo test check test-all bench clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.installed  ## Install kdcache and what its tests need into .venv

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@

demo: setup  ## Run the whole path on real data and print the table (about a minute)
	$(BIN)/kdcache demo

test: setup  ## Run the tests
	$(PYTEST) -m "not slow"

check: setup  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-all: setup  ## Run the tests, the long sweeps and every recipe
	$(PYTEST) --timeout 3600

bench: setup  ## Print the benchmark tables
	$(BIN)/python tests/benchmarks/loader.py
	$(BIN)/python tests/benchmarks/dump.py
	$(BIN)/python tests/benchmarks/train_overhead.py
	$(BIN)/python tests/benchmarks/encode.py
	$(BIN)/python tests/benchmarks/losses.py
	$(BIN)/python tests/benchmarks/codecs.py

clean:  ## Remove what the other targets made
	rm -rf .venv demo build *.egg-info .mypy_cache .ruff_cache .hypothesis
