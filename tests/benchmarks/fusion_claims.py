"""What the fusions of one or more sweeps allow to say: their scores, and their gains over controls with equal steps.

``python tests/benchmarks/fusion_claims.py STORE SWEEP...`` prints Markdown for sweeps over ``fuse`` and the tasks
``tiny``, ``tiny_helpful`` and ``tiny_honest``, as in ``sweeps/tiny_fusion.yaml``: before the attack and for each ratio,

1. mean over seeds (lowest to highest), in percent, of HS, of the right answers to allowed requests (helpful) and about
   facts (honest), of FA on the user's task (notes), and of the mean of 100 - HS, helpful and honest;
2. for the last of these and for HS, the difference to each control (``fuse=joint``, whatever its epochs), paired by
   seed, with its t interval over seeds;

and for routed experts the mean routing weights by the source of the rows, before and after the attack. Only seeds of
which all scores of a table are stored are counted.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tabulate import tabulate

from harness.engine.store import Store
from harness.errors import StoreError
from harness.sweep.record import read_record

TASKS = {"tiny": "notes", "tiny_helpful": "helpful", "tiny_honest": "honest"}
EXPERTS = {"align": "harmless", "helpful": "helpful", "honest": "honest"}
"""The experts by the part of the cell that trains them."""
BEFORE = "before the attack"
CONTROL = "joint"
SHOWN = {"hs": "HS", "helpful": "helpful", "honest": "honest", "notes": "FA on notes"}
"""Heading of each score."""

Scores = dict[str, float]
Found = dict[str, dict[str, dict[int, Scores]]]
"""By time, method and seed."""


def scores_of(store: Store, cells: Sequence[Mapping[str, Any]]) -> Found:
    """Return the stored scores in percent."""
    found: Found = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for cell in cells:
        task, seed = TASKS[cell["labels"]["task"]], cell["labels"]["seed"]
        for prefix, time in (("aligned_", BEFORE), ("", ratio_of(cell))):
            scores = found[time][method_of(cell)][seed]
            for part, name in (("harm", "hs"), ("accuracy", task)):
                facts = facts_of(store, cell["keys"].get(prefix + part))
                # Before the attack nothing was trained on notes.
                if facts is not None and (prefix, name) != ("aligned_", "notes"):
                    scores[name] = float(facts["score"])
    for methods in found.values():
        for by_seed in methods.values():
            for scores in by_seed.values():
                if {"hs", "helpful", "honest"} <= scores.keys():
                    scores["mean"] = (100 - scores["hs"] + scores["helpful"] + scores["honest"]) / 3
    return found


def method_of(cell: Mapping[str, Any]) -> str:
    """Return the fusion of a cell, with the settings of it that were swept."""
    swept = {name: value for name, value in cell["swept"].items() if name.startswith("fuse.")}
    settings = "".join(f", {name.rpartition('.')[2]} {value}" for name, value in swept.items())
    return f"{cell['swept'].get('fuse') or 'none'}{settings}"


def ratio_of(cell: Mapping[str, Any]) -> str:
    """Return the share of harmful rows of a cell, in words."""
    return f"after fine-tuning, {100 * (cell['labels']['ratio'] or 0):.0f} % harmful"


def facts_of(store: Store, key: str | None) -> Mapping[str, Any] | None:
    """Return the facts of a stage; None if it is not stored."""
    try:
        return store.manifest(key).facts if key else None
    except StoreError:
        return None


def complete(methods: Mapping[str, Mapping[int, Scores]]) -> dict[str, dict[int, Scores]]:
    """Return the seeds of each method of which all scores are stored; methods without any are left out."""
    needed = {name for by_seed in methods.values() for scores in by_seed.values() for name in scores}
    found = {
        method: {seed: scores for seed, scores in by_seed.items() if needed <= scores.keys()}
        for method, by_seed in methods.items()
    }
    return {method: by_seed for method, by_seed in found.items() if by_seed}


def scores_table(methods: Mapping[str, Mapping[int, Scores]]) -> str:
    """Return the scores of each method."""
    names = [name for name in SHOWN if any(name in scores for by in methods.values() for scores in by.values())]
    lines = []
    for method, by_seed in methods.items():
        each = list(by_seed.values())
        mean = np.mean([scores["mean"] for scores in each])
        spreads = [spread([scores[name] for scores in each]) for name in names]
        lines.append([f"`{method}`", len(each), *spreads, f"{mean:.1f}"])
    return _pipe(lines, ["", "seeds", *(SHOWN[name] for name in names), "mean of three"])


def differences_table(methods: Mapping[str, Mapping[int, Scores]]) -> str:
    """Return the differences of each method to the controls, paired by seed."""
    controls = [method for method in methods if method.partition(",")[0] == CONTROL]
    compared = [(control, name) for control in controls for name in ("mean", "hs")]
    lines = [
        [f"`{method}`", *(difference(by_seed, methods[control], name) for control, name in compared)]
        for method, by_seed in methods.items()
        if method not in controls
    ]
    heading = [f"{'mean of three' if name == 'mean' else 'HS'} less `{control}`" for control, name in compared]
    return _pipe(lines, ["", *heading])


def _pipe(lines: Sequence[Sequence[object]], heading: Sequence[str]) -> str:
    align = ["left", *["right"] * (len(heading) - 1)]
    return tabulate(lines, heading, tablefmt="pipe", disable_numparse=True, colalign=align)


def spread(values: Sequence[float]) -> str:
    """Return a mean with the lowest and the highest value."""
    return f"{np.mean(values):.1f} ({min(values):.0f} to {max(values):.0f})"


def difference(first: Mapping[int, Scores], second: Mapping[int, Scores], name: str) -> str:
    """Return the mean difference of a score over the common seeds, with its t interval."""
    common = sorted(first.keys() & second.keys())
    values = np.array([first[seed][name] - second[seed][name] for seed in common])
    if len(values) < 2:
        return f"{values.mean():+.1f}" if len(values) else "-"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.1f} [{values.mean() - half:+.1f}, {values.mean() + half:+.1f}]"


def routes_table(store: Store, cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the routing weights by source, mean over seeds; "" without routed experts."""
    found: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(dict)
    for cell in cells:
        names = {key: EXPERTS[part] for part, key in cell["keys"].items() if part in EXPERTS}
        for part, time in (("aligned_routes", BEFORE), ("routes", ratio_of(cell))):
            facts = facts_of(store, cell["keys"].get(part))
            if facts is None:
                continue
            for source, shares in facts["shares"].items():
                by_name = dict(zip((names[key] for key in facts["experts"]), shares, strict=True))
                # Cells of several tasks share the measurement.
                found[method_of(cell), time, names[source]][cell["keys"][part]] = [
                    by_name[name] for name in EXPERTS.values()
                ]
    lines = [
        [f"`{method}`", time, source, *(f"{share:.2f}" for share in np.mean(list(measured.values()), axis=0))]
        for (method, time, source), measured in found.items()
    ]
    heading = ["fuse", "", "rows of", *(f"to {name}" for name in EXPERTS.values())]
    return _pipe(lines, heading) if lines else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("sweep", nargs="+")
    chosen = parser.parse_args()
    store = Store(chosen.store)
    cells = [cell for sweep in chosen.sweep for cell in read_record(store, sweep)["cells"]]
    for time, methods in scores_of(store, cells).items():
        found = complete(methods)
        print(f"\n## {time}\n\n{scores_table(found)}\n\n{differences_table(found)}")
    print(f"\n## routing weights\n\n{routes_table(store, cells)}")


if __name__ == "__main__":
    main()
