# Two commands for a newcomer: `make demo` and `make test`. Everything happens in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench install clean slurm-up slurm-down wandb-server

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed; set one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,smollm2,wandb]'
	touch $(STAMP)

install: $(STAMP)

# A W&B-compatible server for the tests, apart from the harness: its dependencies are not ours.
WANDB_SERVER := .venv-wandb/.installed

$(WANDB_SERVER):
	$(PYTHON) -m venv .venv-wandb
	.venv-wandb/bin/python -m pip install --quiet openwandb==0.5.25
	touch $@

wandb-server: $(WANDB_SERVER)

demo: $(STAMP)
	$(BIN)/harness -m +sweeps=demo

# The tests of tests/slurm run on the Slurm of `make slurm-up`, if it is up, and on no other.
test: $(STAMP)
	HARNESS_SLURM_BED=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/planning.py
	$(BIN)/python tests/benchmarks/booster_step.py
	$(BIN)/python tests/benchmarks/method_steps.py
	$(BIN)/python tests/benchmarks/antidote_repair.py
	$(BIN)/python tests/benchmarks/generation.py
	$(BIN)/python tests/benchmarks/report.py
	$(BIN)/python tests/benchmarks/tracking.py
	$(BIN)/python tests/benchmarks/slurm.py

# A throw-away Slurm of four virtual nodes on this machine, for tests/slurm. Needs root.
slurm-up:
	tests/slurm/cluster.sh up

slurm-down:
	tests/slurm/cluster.sh down

clean:
	rm -rf $(VENV) .venv-wandb build dist *.egg-info
