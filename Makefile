# Everything lives in .venv of this checkout; nothing needs root.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
# Test files that run side by side.
JOBS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test slow lowest pythons gpu fuzz lint typecheck clean

help:           ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '%-18s%s\n' "$$name" "$$text"; done

quickstart: $(INSTALLED)        ## search on this machine's own latencies, ending in four timm models
	$(BIN)/proxyless experiment examples/quickstart.yml

test: $(INSTALLED_DEV)          ## run the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

slow: $(INSTALLED_DEV)          ## run the tests that take longer
	$(BIN)/python -m pytest -m slow

lowest:         ## run the tests on the lowest versions that pyproject.toml allows, torch apart
	$(MAKE) test VENV=.venv/lowest LOWEST=yes

pythons:        ## run the tests on every Python from 3.10 to 3.13 that is found
	@for minor in 10 11 12 13; do \
		found=; \
		for each in python3.$$minor $$HOME/.pyenv/versions/3.$$minor.*/bin/python; do \
			if $$each -c '' 2> /dev/null; then found=$$each; break; fi; \
		done; \
		if [ -z "$$found" ]; then echo "there is no Python 3.$$minor here: not tested"; continue; fi; \
		echo "Python 3.$$minor: $$found"; \
		$(MAKE) --no-print-directory test VENV=.venv/3.$$minor PYTHON=$$found || exit 1; \
	done

gpu: $(INSTALLED_DEV)           ## check this machine's GPU in 8 minutes: updates, costs of steps, tables, searches
	$(BIN)/python -m tests.benchmarks.gpu

fuzz: $(INSTALLED_DEV)          ## give every reader of files 200,000 damaged ones, guided by coverage where atheris installs
	$(PIP) --editable '.[fuzz]' \
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
	$(PYTHON) -m venv $(VENV)

# NNI writes a generated file into site-packages on its first import; later ones may then run side by side.
FIRST_IMPORT := $(BIN)/python -c 'from search_spaces.nni_import import import_nni; import_nni()'

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	$(FIRST_IMPORT)
	touch $@

# Another torch than the newest takes gigabytes: `make lowest TORCH=2.9.0 TORCHVISION=0.24.0` asks for them.
TORCH ?= 2.14.1
TORCHVISION ?= 0.29.1

$(INSTALLED_DEV): pyproject.toml | $(BIN)/python
ifdef LOWEST
	$(PIP) uv
	printf 'torch==%s\ntorchvision==%s\n' $(TORCH) $(TORCHVISION) > $(VENV)/torch.txt
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python $(BIN)/python --extra dev --extra browser \
		--override $(VENV)/torch.txt --output-file $(VENV)/lowest.txt pyproject.toml
	$(PIP) --requirement $(VENV)/lowest.txt
	$(PIP) --no-deps --editable .
else
	$(PIP) --editable '.[dev,browser]'
endif
	$(FIRST_IMPORT)
	touch $@ $(INSTALLED)
