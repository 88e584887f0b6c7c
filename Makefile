# The front door: `make demo` shows the package at work, `make test` checks it. Both need only python3 (3.11 or newer)
# with its venv module; everything else goes into .venv, which is renewed when the pinned versions change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An empty file whose time says when $(VENV) was last installed into.
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
DEMO_OUT ?= demo
# Test processes side by side, of about 2 GB each; files in the order of tests/conftest.py.
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# The oldest pip that knows dependency groups; python3 -m venv may bring an older one.
PIP := pip>=25.1
# test-lowest: dependencies of dependencies are those of this day, as a library of 2024 does not run beside all of today's.
LOWEST_DAY ?= 2025-04-01
LOWEST := .venv-lowest
# test-newest: one environment for each Python; PRE=--pre takes pre-releases as well.
NEWEST = .venv-newest-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
PRE ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-lowest test-newest docs gallery tutorials clean

help:
	@echo "make demo         install, run the main job on simulated and on real cells, leave $(DEMO_OUT)/ with h5ad and HTML report"
	@echo "make test         install, then lint, types, import layers, tests with coverage"
	@echo "make test-fast    the tests alone, without those marked slow"
	@echo "make test-lowest  the tests on Python 3.11 with every dependency at its lower bound; downloads several GB"
	@echo "make test-newest  the tests with the newest version of everything; PYTHON=python3.13, PRE=--pre; several GB"
	@echo "make docs         install, then build the documentation in docs/_build/html"
	@echo "make gallery      install, train small models and draw the pictures of docs/gallery.md from them; minutes"
	@echo "make tutorials    install, then execute the notebooks in tutorials/ and keep their outputs"
	@echo "make clean        remove the environments, $(DEMO_OUT) and build outputs"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is %s. Name another one: make PYTHON=python3.12" % sys.version.split()[0])'
	@echo "== Installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP_INSTALL) "$(PIP)"
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e . --group test --group lint
	@touch $@

$(DOCS_STAMP): $(STAMP)
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e . --group docs
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

# Warnings are errors with the pinned versions alone: of other versions they are listed.
test-lowest:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info[:2] == (3, 11) else "The lower bounds are those of Python 3.11: make test-lowest PYTHON=python3.11")'
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python $(PIP_INSTALL) uv
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --exclude-newer $(LOWEST_DAY) -e . --group test
	@$(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile -W default

test-newest:
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python $(PIP_INSTALL) --upgrade pip
	@$(NEWEST)/bin/python $(PIP_INSTALL) --upgrade --upgrade-strategy eager $(PRE) -e . --group test
	@$(NEWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile -W default

docs: $(DOCS_STAMP)
	@$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html
	@echo "== Open docs/_build/html/index.html"

gallery: $(STAMP)
	@$(BIN)/python docs/make_gallery.py

tutorials: $(DOCS_STAMP)
	@$(BIN)/jupyter execute --inplace tutorials/*.ipynb

clean:
	@rm -rf $(VENV) $(LOWEST) .venv-newest-* $(DEMO_OUT) build dist docs/_build docs/api/generated .coverage* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
