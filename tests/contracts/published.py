"""What a published sweep asks for: its cells, what the planner runs, and what the repositories' scripts would run.

Run ``python tests/contracts/published.py`` for the numbers of docs/published.md.
"""

import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from composed import compose
from omegaconf import OmegaConf

from harness.config.build import cells_of
from harness.engine.plan import Plan

ROOT = Path(__file__).parents[2]
REPOSITORIES = ("booster", "vaccine", "lisa", "antidote", "tvaccine", "panacea", "virus")
SWEEPS = sorted(
    path.stem for path in (ROOT / "sweeps").glob("*.yaml") if path.stem.split("_", maxsplit=1)[0] in REPOSITORIES
)
TRAININGS = ("align", "finetune")


class Asked(NamedTuple):
    """How much a sweep asks for.

    Attributes:
        cells: points of the sweep.
        trainings: alignments and fine-tunings that the planner runs.
        scripts_trainings: those that the scripts run: each alignment once, by its own script, and a fine-tuning a cell.
        stages: all stages that the planner runs.
        scripts_stages: those that the scripts run: the trainings, and for each cell its repair if there is one, two
            rounds of answers and two gradings.
    """

    cells: int
    trainings: int
    scripts_trainings: int
    stages: int
    scripts_stages: int


def command_line(sweep):
    """Return a sweep file as overrides; it holds an experiment, a title and the sweep, and nothing else."""
    file = OmegaConf.to_container(OmegaConf.load(ROOT / "sweeps" / f"{sweep}.yaml"))
    params = file.pop("hydra")["sweeper"]["params"]
    assert file.pop("title") == sweep
    (experiment,) = file.pop("defaults")
    assert not file
    return [f"experiment={experiment['override /experiment']}", *(f"{name}={value}" for name, value in params.items())]


@cache
def cells(sweep):
    """Return the cells of a sweep."""
    return cells_of(compose(command_line(sweep)))


def asked(*sweeps):
    """Count one or more sweeps; the planner is given them together, the scripts run them one after the other."""
    own = [cell for sweep in sweeps for cell in cells(sweep)]
    stages = Plan.of(leaf for cell in own for leaf in cell.leaves).stages
    trainings = len({cell.stages["align"].key for cell in own}) + len(own)
    repairs = sum("repair" in cell.stages for cell in own)
    return Asked(
        cells=len(own),
        trainings=sum(stage.name in TRAININGS for stage in stages),
        scripts_trainings=trainings,
        stages=len(stages),
        scripts_stages=trainings + repairs + 4 * len(own),
    )


def lines():
    """Return the numbers of every sweep and of every repository."""
    for repository in REPOSITORIES:
        own = [sweep for sweep in SWEEPS if sweep.startswith(f"{repository}_")]
        yield from ((sweep, asked(sweep)) for sweep in own)
        yield f"all of {repository}", asked(*own)


if __name__ == "__main__":
    for name, counts in lines():
        sys.stdout.write(f"{name:30} {' | '.join(str(count) for count in counts)}\n")
