# make demo    train a small adapter on this machine and show what it changed (about 3 minutes on two CPU cores)
# make test    every test tier that this machine allows, in two lanes side by side
# make soak    the long attacks: thousands of hostile files, fuzzing guided by coverage, the algebra on many more inputs,
#              kills, full disks and interrupts by the hundred, an hour of training; SOAK_MINUTES=60, SOAK_FAULTS=100
# make lint    ruff: lint and format
# make types   mypy, strict, on trilora_core
# make clean   remove the virtual environment, the demo's output and caches
#
# The virtual environment is made on the first call. PYTHON=… picks another interpreter (3.10 or newer),
# PIP_FLAGS=… is passed to pip: on Linux without an NVIDIA card
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# fetches a torch of 200 MB in place of several GB.

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
PIP_FLAGS ?=
PYTEST_FLAGS ?=
SOAK_INPUTS ?= 12000
SOAK_SECONDS ?= 300
SOAK_SEED ?= 0
SOAK_FAULTS ?= 100
SOAK_MINUTES ?= 60
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.PHONY: demo test soak lint types clean

demo: .venv/.standalone
	$(BIN)/python -m trilora_core demo

test: .venv/.dev
	$(BIN)/python tests/lanes.py $(PYTEST_FLAGS)

soak: .venv/.soak
	$(BIN)/python -m tests.hostile.soak --inputs $(SOAK_INPUTS) --seed $(SOAK_SEED)
	$(BIN)/python -m tests.hostile.guided --seconds $(SOAK_SECONDS)
	TRILORA_EXAMPLES=300 $(BIN)/pytest --no-cov tests/hostile/test_algebra.py
	$(BIN)/python -m tests.faults.kills --runs $(SOAK_FAULTS) --encodings $(SOAK_FAULTS) --seed $(SOAK_SEED)
	$(BIN)/python -m tests.faults.disk --rooms $(SOAK_FAULTS) --seed $(SOAK_SEED)
	$(BIN)/python -m tests.faults.interrupts --count $(SOAK_FAULTS) --seed $(SOAK_SEED)
	TRILORA_FAULTS=$(SOAK_FAULTS) $(BIN)/pytest --no-cov -s tests/host/test_faults.py
	$(BIN)/python -m tests.faults.long --minutes $(SOAK_MINUTES)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

clean:
	rm -rf .venv demo build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache .coverage

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 or newer was found; install one, or give PYTHON=/its/path"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.standalone: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch, diffusers and what they need into .venv (once; several minutes on a slow line) …"
	$(INSTALL) -e ".[standalone]"
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the tests need into .venv (once) …"
	$(INSTALL) -e ".[standalone,dev]"
	@touch .venv/.standalone $@

.venv/.soak: .venv/.dev
	$(INSTALL) -e ".[standalone,dev,soak]"
	@touch $@
