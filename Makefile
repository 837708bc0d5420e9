# Everything lives in .venv of this checkout; nothing needs root.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
INSTALLED_DEV := .venv/.installed-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test slow fuzz lint typecheck clean

help:           ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '%-18s%s\n' "$$name" "$$text"; done

quickstart: $(INSTALLED)        ## search on this machine's own latencies, ending in four timm models
	$(BIN)/proxyless experiment examples/quickstart.yml

test: $(INSTALLED_DEV)          ## run the tests
	$(BIN)/python -m pytest

slow: $(INSTALLED_DEV)          ## run the tests that take longer
	$(BIN)/python -m pytest -m slow

fuzz: $(INSTALLED_DEV)          ## give every reader of files 200,000 damaged ones, guided by coverage where atheris installs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]' \
		|| echo "atheris does not install here; the plain engine takes its place" >&2
	$(BIN)/python -m tests.benchmarks.fuzz --keep runs/fuzz

lint: $(INSTALLED_DEV)          ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(INSTALLED_DEV)     ## check types
	$(BIN)/mypy

clean:          ## remove .venv, caches and build leftovers; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "$(PYTHON) is not Python 3.10 to 3.13; run make PYTHON=/path/to/one" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# NNI writes a generated file into site-packages on its first import; later ones may then run side by side.
FIRST_IMPORT := $(BIN)/python -c 'from search_spaces.nni_import import import_nni; import_nni()'

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	$(FIRST_IMPORT)
	touch $@

$(INSTALLED_DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(FIRST_IMPORT)
	touch $@ $(INSTALLED)
