# Two commands for a newcomer: `make demo` and `make test`. Everything happens in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench install clean slurm-up slurm-down wandb-server optuna-sweeper

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

# Optuna's sweeper for the tests, apart from the harness: it holds Optuna below 3, and that SQLAlchemy below 2.
# The environment has nothing of its own but these, and sees ours for the rest.
OPTUNA_SWEEPER := .venv-optuna/.installed

$(OPTUNA_SWEEPER): $(STAMP)
	$(PYTHON) -m venv .venv-optuna
	.venv-optuna/bin/python -c 'import sys, sysconfig; open(sysconfig.get_path("purelib") + "/harness.pth", "w").write(f"import site; site.addsitedir({sys.argv[1]!r})\n")' "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	.venv-optuna/bin/python -m pip install --quiet hydra-optuna-sweeper==1.3.0 'sqlalchemy<2'
	touch $@

optuna-sweeper: $(OPTUNA_SWEEPER)

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
	rm -rf $(VENV) .venv-wandb .venv-optuna build dist *.egg-info
