# make demo      install, then data -> train -> eval -> report on a built-in task (QUICK=1: every stage in about a minute)
# make test      install, then the whole test suite
# make lint      ruff and pyright
# make docs      the site, built strictly into build/site; make docs SERVE=1 shows it while it is written
# make bench     the benchmarks that this machine can run
# make bench-gpu on a machine with a GPU, torch and triton and nothing else: check, tune and time every kernel
# make bounds    the tests of the core with the lowest and the newest versions of what jacrec requires

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.installed
WORKERS ?= 2
QUICK ?=
SERVE ?=
TEST ?=

.PHONY: install demo test lint docs bench bench-gpu bounds clean

install: $(STAMP)

# torch first: on a machine without a GPU the bare requirement could bring gigabytes of CUDA packages
$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "jacrec needs Python 3.11 or newer, got %s; try make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e ".[test,video]"
	touch $(STAMP)

$(VENV)/.linters: $(STAMP)
	$(PIP) -e ".[dev]"
	touch $(VENV)/.linters

# pyright does not follow jacrec/kernels.py to the folder kernels/; these links show it as an installation has it
build/types:
	mkdir -p build/types/jacrec
	ln -s ../../../kernels build/types/jacrec/kernels
	ln -s ../../../jacrec/__init__.py build/types/jacrec/__init__.py

demo: install
	$(BIN)/jacrec demo $(if $(QUICK),--quick)

# one torch thread per worker: more would oversubscribe the cores. worksteal leaves a module's tests, and its fixtures, to one worker
test: install
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TEST)

lint: $(VENV)/.linters build/types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(VENV)/.docs: $(STAMP)
	$(PIP) -e ".[docs]"
	touch $(VENV)/.docs

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(if $(SERVE),serve,build)

bench: install
	$(BIN)/jacrec bench

# with the machine's own Python, which has its CUDA build of torch
bench-gpu:
	$(PYTHON) benchmarks/gpu.py

bounds:
	$(PYTHON) tests/bounds.py lowest
	$(PYTHON) tests/bounds.py newest

# the examples that hypothesis has found (.hypothesis) are kept
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
