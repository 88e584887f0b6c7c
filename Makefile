# The front door: `make demo` shows the package at work, `make test` checks it. Both need only python3 (3.11 or newer)
# with its venv module; everything else goes into .venv, which is renewed when the pinned versions change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An empty file whose time says when $(VENV) was last installed into.
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
DEMO_OUT ?= demo
# Test processes side by side, of about 2 GB each.
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast docs clean

help:
	@echo "make demo       install, run the main job on simulated and on real cells, leave $(DEMO_OUT)/ with h5ad and HTML report"
	@echo "make test       install, then lint, types, import layers, tests with coverage"
	@echo "make test-fast  the tests alone, without those marked slow"
	@echo "make docs       install, then build the documentation in docs/_build/html"
	@echo "make clean      remove $(VENV), $(DEMO_OUT) and build outputs"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is %s. Name another one: make PYTHON=python3.12" % sys.version.split()[0])'
	@echo "== Installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) -e ".[test]"
	@touch $@

$(DOCS_STAMP): $(STAMP)
	@$(PIP_INSTALL) -e ".[docs]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/scstate-lora demo --out $(DEMO_OUT)
	@echo "== The demo left:"
	@find $(DEMO_OUT) \( -name '*.h5ad' -o -name '*.html' \) | sort | sed 's/^/   /'

test: $(STAMP)
	@echo "== Lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== Types"
	@$(BIN)/mypy
	@echo "== Import layers"
	@$(BIN)/lint-imports
	@echo "== Tests"
	@$(PYTEST) --cov --cov-fail-under=85 --durations=10

test-fast: $(STAMP)
	@$(PYTEST) -q -m "not slow"

docs: $(DOCS_STAMP)
	@$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html
	@echo "== Open docs/_build/html/index.html"

clean:
	@rm -rf $(VENV) $(DEMO_OUT) build dist docs/_build docs/api/generated .coverage .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
