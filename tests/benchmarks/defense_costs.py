"""Time and memory of every defense's own stages relative to those of plain training, on the tiny model.

Run: python tests/benchmarks/defense_costs.py [DEFENSE ...]; without names, all that ship. Each runs in a process
of its own, forked from one that has imported everything, on 500 rows of alignment and 600 of fine-tuning, one epoch
each; a repair is relative to the fine-tuning. What is read is the time of that process on the processors, so that a
busy machine disturbs little, and its highest resident memory. Both contain what every stage costs: reading the model
and writing the result.
"""

import argparse
import multiprocessing
import resource
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from harness.config.build import cells_of
from harness.config.compose import CommandLines
from harness.config.shipped import CONF
from harness.engine.plan import Plan
from harness.engine.store import Store
from harness.local.executor import LocalExecutor

SLOTS = ("align", "finetune", "repair")
SHORT = (
    "attack_ratio=p10",
    "model.source.steps=250",
    "align.budget.epochs=1",
    "finetune.budget.epochs=1",
)


def slots() -> dict[str, set[str]]:
    """Return every defense of one option with the slots in which it acts, plain training first."""
    found: dict[str, set[str]] = {"sft": {"align", "finetune"}}
    for slot in SLOTS:
        for path in sorted((CONF / "defense" / slot).glob("*.yaml")):
            found.setdefault(path.stem, set()).add(slot)
    return found


def measure(defense: str, base: Path, lines: CommandLines) -> tuple[dict[str, float], float]:
    """Return seconds on the processors by slot, and the highest resident memory in MB."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        store, seconds = Store(shutil.copytree(base, Path(folder) / "store")), {}
        # The cells after the first ask the same model other questions.
        cell, *_ = cells_of(lines.compose([f"defense={defense}", *SHORT]))
        for slot in SLOTS:
            stage = cell.stages.get(slot)
            if stage is None:
                continue
            before = time.process_time()
            assert LocalExecutor().run(Plan.of([stage]), store).complete
            seconds[slot] = time.process_time() - before
        return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print a line for each defense."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("defenses", nargs="*", default=[*slots()])
    chosen = parser.parse_args().defenses
    lines = CommandLines()
    with TemporaryDirectory() as folder:
        base = Path(folder) / "store"
        (cell,) = cells_of(lines.compose(["defense=sft", *SHORT]))
        assert LocalExecutor().run(Plan.of([cell.stages["poison"], cell.stages["align"]]), Store(base)).complete
        # It was trained for the imports alone: a defense that has no other trains it again.
        shutil.rmtree(base / "artifacts" / "align")
        plain: dict[str, float] = {}
        for defense in dict.fromkeys(["sft", *chosen]):
            with multiprocessing.get_context("fork").Pool(1) as pool:
                seconds, memory = pool.apply(measure, (defense, base, lines))
            if defense == "sft":
                plain = {**seconds, "memory": memory, "repair": seconds["finetune"]}
            own_slots = [slot for slot in seconds if slot in slots()[defense]]
            ratios = "  ".join(f"{slot} {seconds[slot] / plain[slot]:5.2f} x" for slot in own_slots)
            print(f"{defense:22} {ratios}  {memory - plain['memory']:+6.1f} MB", flush=True)


if __name__ == "__main__":
    main()
