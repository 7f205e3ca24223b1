# fedleak: `make demo` shows it, `make test` proves it. Both set up .venv by themselves, once.

# The first Python on the PATH that is 3.11 to 3.13 and can make a virtual environment.
# Another one is named on the command line: make test PYTHON=/path/to/python3.12
FITS   := import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))
# The same, which prints the version too.
FITS.version := import sys; print("%d.%d" % sys.version_info[:2]); $(FITS)
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c '$(FITS)' >/dev/null 2>&1 && echo $$p && break; done)

VENV  := .venv
RUN   := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PEERS := .venv-peers
PIP   := $(RUN) -m pip --disable-pip-version-check

# Extra arguments for the command behind a target: make test ARGS="-m slow -k nra"
ARGS ?=

# Test files run side by side, so many at a time; every test computes with one thread.
WORKERS ?= 2

# The Pythons of `make matrix` and the tests that it runs: quick ones of the parts that depend on the
# versions of Python and of the dependencies, including a real federation.
PYTHONS ?= python3.11 python3.12 python3.13
QUICK   ?= tests/test_public.py tests/test_class_source.py tests/test_config.py tests/test_registry.py \
	tests/attacks/test_attacks.py tests/attacks/test_labels.py tests/attacks/closed_form tests/data \
	tests/defenses tests/models tests/updates tests/federation/engine/test_simulation.py

# No usage statistics leave this machine.
export FLWR_TELEMETRY_ENABLED := 0
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test docs matrix dist bench bench-peers lint lint-code lint-format lint-types lint-imports format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s%s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## create .venv and install into it; the targets below do this if need be

demo: $(STAMP) ## the main job on embedded photographs: attack a federation, show what leaks
	$(VENV)/bin/fedleak run --config experiments/main-job/demo.yaml --output runs/demo --overwrite $(ARGS)

# In the files' order: those with few tests would otherwise come last, and some of them are slow.
test: $(STAMP) ## the tests except the slow ones (ARGS="-m slow" runs those)
	$(RUN) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

matrix: ## the quick tests on each Python of 3.11 to 3.13 that is found, in .venv-3.X, made once
	@set -e; for python in $(PYTHONS); do \
		version=$$($$python -c '$(FITS.version)' 2>/dev/null) || { \
			echo "Left out: $$python, which is not here or not 3.11 to 3.13."; continue; }; \
		echo "Python $$version"; \
		$(MAKE) --no-print-directory test VENV=.venv-$$version PYTHON=$$python \
			ARGS="$(QUICK) $(ARGS)"; \
	done

dist: $(STAMP) ## the source distribution and the wheel, checked, in dist/
	rm -rf build dist
	$(RUN) -m build --no-isolation
	$(RUN) -m twine check --strict dist/*

bench: $(STAMP) ## the benchmarks but for the peers'; writes benchmarks/results.json
	$(RUN) -m benchmarks.run $(ARGS)

bench-peers: $(STAMP) $(PEERS)/.installed ## speed beside breaching's, in .venv-peers, made once
	$(RUN) -m benchmarks.run --peers $(ARGS)

docs: $(STAMP) ## the documentation, into docs/_build/html; fails on a warning
	$(RUN) -m sphinx -q -W --keep-going -b html docs docs/_build/html

lint: lint-code lint-format lint-types lint-imports ## all checks: ruff, mypy, the import rules

lint-code: $(STAMP)
	$(RUN) -m ruff check .

lint-format: $(STAMP)
	$(RUN) -m ruff format --check .

lint-types: $(STAMP)
	$(RUN) -m mypy fedleak

lint-imports: $(STAMP)
	$(VENV)/bin/lint-imports --no-logo

format: $(STAMP) ## fix what ruff can fix, and format the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean: ## remove .venv, builds and caches; runs/ stays
	rm -rf $(VENV) .venv-3.* $(PEERS) build dist *.egg-info
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	rm -rf docs/_build docs/_generated docs/experiments docs/reference/packages docs/reference/modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that an interrupted installation is repeated and a complete one is
# kept. A change of setup.cfg or pyproject.toml reinstalls only fedleak itself.
$(VENV)/.requirements: requirements.txt
	@$(or $(PYTHON),false) -c '$(FITS)' 2>/dev/null || { \
		echo "fedleak needs Python 3.11, 3.12 or 3.13 with its venv module: install one, or name it with 'make PYTHON=/path/to/python3.11'." >&2; \
		exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version), once. Some minutes: PyTorch is a large download."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -r requirements.txt
	@touch $@

$(STAMP): $(VENV)/.requirements setup.cfg pyproject.toml
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "$(VENV) is ready."

# The peer's packages have conflicting requirements and are kept out of .venv.
$(PEERS)/.installed: benchmarks/peers/requirements.txt | $(STAMP)
	@echo "Setting up $(PEERS), once. Some minutes: PyTorch is a large download."
	@$(RUN) -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@
