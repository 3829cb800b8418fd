# make demo   edit a rendered clip in three turns, then look at demo/out
# make test   lint, types, tests (what continuous integration runs)
# make bench  every benchmark; writes docs/benchmarks.md
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint bench check-docs clean

install: .venv/installed

# The stamp makes a second call free; a change of either file installs again.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python {sys.version.split()[0]} found, 3.11 or newer needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/python -m jobs.demo demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

bench: install
	$(BIN)/python -m benchmarks

check-docs: install
	$(BIN)/python -m tests.check_docs

clean:
	rm -rf demo .venv
