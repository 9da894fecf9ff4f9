# make run    sets everything up, then prunes and trains on data that ships
# make test   sets everything up, then formats, types and runs the tests
# make bench  the tables of benchmarks/results and the README; wants idle cores
# make setup  only the environment, in .venv

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-runs test-parts bench setup check
run: setup
	$(BIN)/python train.py --config quickstart.yaml

# two halves beside each other, a thread for each process: what is started, killed and resumed; everything else
RUNS := tests/experiment tests/sweep tests/test_*.py
test: check
	$(MAKE) --jobs 2 --keep-going test-runs test-parts

test-runs:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(RUNS)

test-parts:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(addprefix --ignore=,$(wildcard $(RUNS)))

bench: setup
	$(BIN)/python benchmarks/compact.py
	$(BIN)/python benchmarks/synflow.py
	$(BIN)/python benchmarks/large.py
	$(BIN)/python benchmarks/gradient_scoring.py
	$(BIN)/python benchmarks/masked_step.py
	$(BIN)/python benchmarks/training_options.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/startup.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/readme_tables.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: .venv/installed

# made last, so that an installation that broke off is begun again
.venv/installed: pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 12), "prunelab needs Python 3.11 or 3.12: make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --no-deps lightning-bolts==0.7.0  # asks for Lightning < 2, see prunelab/compat/bolts.py
	touch $@
