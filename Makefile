# The versions that every pinned package has wheels for.
VERSIONS := 3.11 3.12 3.13
PYTHON ?= $(shell .ci/python $(VERSIONS))
BIN := .venv/bin
STAMP := .venv/.installed
# Two processes: much of the time is spent waiting for clusters to start. A file's tests share what they start, and
# tests/conftest.py orders the files.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install serve test test-fast bench nano constraints audit python

install: $(STAMP)

$(STAMP): pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "no Python with ensurepip of a version that works: $(VERSIONS). Install one, or say where it is: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

# Prints the Python that `make install` takes.
python:
	@echo $(PYTHON)

# ARGS are the command's own, e.g. make serve ARGS='--model DIR --decode 2'.
serve: install
	$(BIN)/ling serve $(ARGS)

test: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(PARALLEL)

# The inner loop: the layer `unit` alone, see CONTRIBUTING.md.
test-fast: install
	$(BIN)/python -m pytest -q $(PARALLEL) -m unit

# All but those that need a GPU: benchmarks.gpu, .kernels, .decode and .tune.
bench: install
	set -e; for file in $$(grep -l __main__ benchmarks/*.py | grep -v -e /gpu.py -e /kernels.py -e /decode.py -e /tune.py); do \
		echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py); \
	done

# Trains ling-nano anew, in some five hours on two cores: from nothing, further, with twice the heads, and what lags.
TRAIN := $(BIN)/python -m training.train
nano: install
	$(TRAIN) --run build/nano/1 --steps 2650 --tokens 3072
	$(BIN)/python -m training.export --run build/nano/1 --out build/nano/first
	$(TRAIN) --run build/nano/2 --start build/nano/first --begin 0.35 --steps 1720 --tokens 4096 --rate 0.004 --seed 7
	$(BIN)/python -m training.export --run build/nano/2 --out build/nano/second
	$(BIN)/python -m training.grow build/nano/second build/nano/grown
	$(TRAIN) --run build/nano/3 --start build/nano/grown --begin 0.35 --steps 1700 --tokens 3072 --rate 0.004 --seed 11 \
		--ranks 2 --threads 1
	$(BIN)/python -m training.export --run build/nano/3 --out build/nano/third
	$(TRAIN) --run build/nano/4 --start build/nano/third --begin 0.86 --steps 330 --tokens 3072 --rate 0.0012 --seed 13 \
		--ranks 2 --threads 1
	$(BIN)/python -m training.export --run build/nano/4
	$(BIN)/python -m training.evaluate

# What the images install: the versions the tests last passed with, and for CUDA what torch's wheel asks for.
constraints: install
	$(BIN)/python .ci/constraints

# Known weaknesses of those versions, from PyPI's advisories; fails if there are any, or no advisories to be had.
audit:
	$(PYTHON) .ci/audit
