# make demo   install, then data -> train -> eval -> report on embedded data (QUICK=1: a one-minute smoke)
# make test   install, then the whole test suite
# make lint   ruff and pyright
# make bench  the benchmarks that this machine can run
# make bench-gpu  on a machine with a GPU, torch and triton, nothing else needed: every kernel checked, tuned and timed

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.installed
WORKERS ?= 2
QUICK ?=

.PHONY: install demo test lint bench bench-gpu clean

install: $(STAMP)

# torch first: on a machine without a GPU the bare requirement would bring gigabytes of CUDA packages
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "jacrec needs Python 3.11 or newer, got %s; say make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e ".[test,video]"
	touch $(STAMP)

$(VENV)/.linters: $(STAMP)
	$(PIP) -e ".[dev]"
	touch $(VENV)/.linters

demo: install
	$(BIN)/jacrec demo $(if $(QUICK),--quick)

# one torch thread per worker: more would oversubscribe the cores
test: install
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: install
	$(BIN)/jacrec bench

# with the machine's own Python, which holds its CUDA torch
bench-gpu:
	$(PYTHON) benchmarks/gpu.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
