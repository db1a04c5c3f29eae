"""Forks a process for each command from one that has imported the program: importing is most of what a short one costs.

Reads a line of JSON per request and answers each with a number: a command to start (arguments, folder, environment,
files for its output) with its process id, a process id to wait for with its exit code.
"""

import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

IMPORTED = (
    "harness.cli.main",
    "harness.cli.progress",
    "harness.sweep.status",
    "harness.cli.status",
    "harness.cli.commands",
    "harness.config.build",
    "harness.generation.transformers",
    "harness.report.figures.plotly",
    "harness.report.output.page",
    "harness.slurm.settings",
    "harness.stages.moderate",
    "harness.sweep.chat_templates",
    "harness.sweep.record",
    "harness.sweep.weight_training",
    "harness.training.federated",
    "harness.wandb_sync.uploader",
    "hydra.main",
    "pandas",
    "peft",
    "scipy.stats",
    "torch",
    "transformers",
)
"""Not ``harness.sweep.run``: it names one of Hydra's sweepers, which Hydra loads anew when it looks for plugins."""


def become(command):
    """Be the command, in this process; leave without the clearing up of an interpreter that is full of libraries."""
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    for number, path in enumerate((os.devnull, command["out"], command["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = [str(Path(sys.executable).with_name("harness")), *command["arguments"]]
    code = 1
    try:
        importlib.import_module("harness.cli.main").main()
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    # What is imported is no garbage, now or later.
    gc.disable()
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            become(request)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
