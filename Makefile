PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
# Two processes: much of the time is spent waiting for clusters to start. A file's tests share what they start.
PARALLEL := -n 2 --dist loadfile

.PHONY: install serve test test-fast bench constraints audit

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

# ARGS are the command's own, e.g. make serve ARGS='--model DIR --decode 2'.
serve: install
	$(BIN)/ling serve $(ARGS)

test: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(PARALLEL)

test-fast: install
	$(BIN)/python -m pytest -q $(PARALLEL) -m 'not slow'

# All but those that need a GPU: benchmarks.gpu, .kernels, .decode and .tune.
bench: install
	set -e; for file in $$(grep -l __main__ benchmarks/*.py | grep -v -e /gpu.py -e /kernels.py -e /decode.py -e /tune.py); do \
		echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py); \
	done

# What the image installs: the versions the tests last passed with.
constraints: install
	$(BIN)/python -m pip freeze --exclude-editable | grep '==' > constraints.txt

# Known weaknesses of those versions, from PyPI's advisories; fails if there are any, or no advisories to be had.
audit:
	$(PYTHON) .ci/audit
