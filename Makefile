# Everything that is done to this repository by hand or by CI. It needs Python >= 3.11 and make.
#
#   make quickstart   tune a network on Fashion-MNIST, about a minute on two cores
#   make test         the fast tests
#   make check        format, lint, types and the fast tests: what must pass before a commit
#   make slow         the tests that take minutes
#   make docs         the pages as HTML, and every example in them run
#   make bench        every benchmark, in full
#
# The first target that is made creates $(VENV) and installs into it; pyproject.toml decides when
# that is due again. Another Python: make test PYTHON=python3.12 VENV=.venv312

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := check
.PHONY: install quickstart test check slow types lint docs bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hyperopt_dl needs Python >= 3.11, '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into $(VENV): this takes some minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

quickstart: install
	$(BIN)/python studies/quickstart.py

test: install
	$(BIN)/python -m pytest

check: lint types test

slow: install
	$(BIN)/python -m pytest -m slow

types: install
	$(BIN)/python -m mypy

lint: install
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .

docs: install
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -b doctest docs docs/_build/doctest

bench: install
	@set -e; for study in $(wildcard studies/benchmarks/*.py); do \
	  echo "== $$study"; $(BIN)/python "$$study"; done

clean:
	rm -rf docs/_build build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find hyperopt_dl studies tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
