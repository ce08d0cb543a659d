# On a fresh machine with Python 3.11 or newer, each target sets up what it needs in .venv.
#
#   PYTHON=python3.12    another Python than python3
#   TORCH_INDEX=URL      take torch from this index, such as https://download.pytorch.org/whl/cpu (no CUDA packages)

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
RUN := $(VENV)/bin/python -m
# pip compiles modules one after another, `compile` by every core; some that packages bring along are of another Python.
PIP := $(RUN) pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt
COMPILE := @$(RUN) compileall -qq -j 0 $(VENV)/lib || true
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
# Modules are compiled once, and not by every process that a test starts.
unexport PYTHONDONTWRITEBYTECODE
# There while a setup is under way, and after one that was interrupted: the next one then starts from nothing.
PENDING := .ready-pending

READY_DOCS := $(VENV)/.ready-docs

.PHONY: help demo test check docs fuzz dashboard clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

# $(call set-up,WHAT): make the environment and install WHAT, such as '.[dev]', in the versions that are tested.
define set-up
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@if test -e $(PENDING); then rm -rf $(VENV); fi
	@touch $(PENDING)
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch)
	$(PIP) --editable $(1)
	$(COMPILE)
	@rm -f $(PENDING)
endef

$(READY): pyproject.toml constraints.txt
	$(call set-up,.)
	@touch $@

$(READY_DEV): pyproject.toml constraints.txt
	$(call set-up,'.[dev]')
	@touch $(READY) $@

# Beside what the tests need, or alone.
$(READY_DOCS): pyproject.toml constraints.txt | $(if $(wildcard $(READY_DEV)),,$(READY))
	$(PIP) --editable '.[docs]'
	$(COMPILE)
	@touch $@

demo: $(READY)  ## train on the embedded digits, run the studies, open the dashboard
	$(RUN) weanalysis demo

test: $(READY_DEV)  ## set everything up and run all tests
	$(RUN) pytest --numprocesses logical --maxprocesses 4 --dist worksteal

check: $(READY_DEV)  ## lint and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy --num-workers auto

docs: $(READY_DOCS)  ## build the documentation, gallery and all, into docs/_build/html
	OMP_NUM_THREADS=1 $(RUN) sphinx --builder html --fail-on-warning --keep-going --quiet --jobs auto docs docs/_build/html

fuzz: $(READY_DEV)  ## feed 10,000 damaged files to every reader, for every night
	$(RUN) benchmarks.fuzz --count 10000

dashboard: $(READY)  ## open the dashboard over what is in the cache
	$(RUN) weanalysis dashboard

clean:  ## remove the environment and build leftovers, never the cache
	rm -rf $(VENV) $(PENDING) docs/_build docs/auto_gallery docs/reference/generated build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
