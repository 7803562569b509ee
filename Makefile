# `make demo` needs Python 3.11 or newer, make and a network; everything it installs lies in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SCHEMA := workflow/schemas/config.schema.json
CORES ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count())')

.PHONY: install demo test test-quick bench lint schema lock clean

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: $(INSTALLED)
	$(BIN)/snakemake --cores $(CORES) --configfile config/demo.yaml
	@cat results/demo/tables/table2.md

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --maxprocesses 8

test-quick: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not slow"

# Speed and memory against rooflines and rivals, an hour and a half on two cores; BENCH="loss ranking" takes some, --quick is quick.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(BENCH)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/snakemake --lint
	$(BIN)/python -m mmm4rec schema 2>/dev/null | diff - $(SCHEMA)

schema: $(INSTALLED)
	$(BIN)/python -m mmm4rec schema --write $(SCHEMA)

lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --quiet \
		--no-annotate --custom-compile-command "make lock" --output-file requirements.lock

# Installed packages, caches and the demo; results of other runs and raw data stay.
clean:
	rm -rf $(VENV) results/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
