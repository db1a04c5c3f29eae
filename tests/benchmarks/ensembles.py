"""CPU time of ensembles beyond their members: 6 members, so 57 subsets, on 200 prompts, for 3 metrics and 5 seeds.

``python tests/benchmarks/ensembles.py``. Answers and grades are made up; reading them, voting, the search,
cross-fitting with all controls and writing the artifacts are those of the stage. Real members add the reading of their
training data, with which the prompts are compared.
"""

import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness.corpora.world import LABELS
from harness.engine.stage import StageContext
from harness.ensembles.decider import Decider
from harness.ensembles.topla import ClassNetwork, Topla
from harness.judges.keywords import Keywords
from harness.judges.tiny import Tiny as TinyJudge
from harness.protocols import EnsembleMethod
from harness.stages.ensemble import Ensemble
from harness.stages.grade import Grade
from harness.tasks.tiny import Tiny

MEMBERS, ROWS, SEEDS, LIMIT = 6, 200, 5, 20.0
METHODS: dict[str, EnsembleMethod] = {
    "topla": Topla(),
    "topla, learned (one network per fold on the task)": Topla(combine="learned", network=ClassNetwork()),
    "decider": Decider(),
    "decider, published state": Decider(state="published", discount=0.99, passes=15),
}


@dataclass(frozen=True)
class Stored:
    """Answers in memory."""

    key: str
    texts: tuple[str, ...]

    def answers(self, locate: object) -> list[dict[str, str]]:
        return [
            {"instruction": f"how do i do {row}", "input": "", "reference": LABELS[row % 2], "answer": text}
            for row, text in enumerate(self.texts)
        ]


@dataclass(frozen=True)
class Scored:
    """Class likelihoods in memory."""

    key: str
    labels: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]

    def likelihoods(self, locate: object) -> list[list[float]]:
        return [list(row) for row in self.rows]


def stage(method: EnsembleMethod, metric: str, seed: int, root: Path) -> tuple[Ensemble, StageContext]:
    """An ensemble of members that are right on 50 to 90 percent of the rows, and where its grades are."""
    chance = random.Random(f"{metric}-{seed}")
    members, scores, folders = [], [], {}
    by = {"harm": {"judge": TinyJudge()}, "over_refusal": {"refusal_judge": TinyJudge()}, "accuracy": {"task": Tiny()}}
    for number in range(MEMBERS):
        good = [chance.random() < 0.5 + 0.08 * number for _ in range(ROWS)]
        if metric == "accuracy":
            texts = tuple(LABELS[row % 2 if right else 1 - row % 2] for row, right in enumerate(good))
        else:
            refuses = "sorry, i will not do that"
            texts = tuple(refuses if right == (metric == "harm") else "take the roller" for right in good)
        grade = Grade(answers=Stored(f"{number:016d}", texts), **by[metric])  # type: ignore[arg-type]
        folders[grade.key] = root / grade.key
        folders[grade.key].mkdir(parents=True, exist_ok=True)
        values = [float(right == (metric == "accuracy")) for right in good]
        lines = (json.dumps({"value": value, "incoherent": False, "reason": "", "scores": {}}) for value in values)
        (folders[grade.key] / "grades.jsonl").write_text("\n".join(lines) + "\n")
        members.append(grade)
        scores.append(Scored(f"{number:016d}", LABELS, tuple((chance.random(), chance.random()) for _ in range(ROWS))))
    out = root / f"{metric}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    made = Ensemble(
        members=tuple(members),
        method=method,
        folds=5,
        seed=seed,
        voter=None if metric == "accuracy" else Keywords(),
        scored=tuple(scores) if metric == "accuracy" and getattr(method, "reads_likelihoods", False) else None,  # type: ignore[arg-type]
    )
    return made, StageContext(out=out, work=root, locate=lambda each: folders[each.key], tracker=None)  # type: ignore[arg-type]


def main() -> None:
    for name, method in METHODS.items():
        with tempfile.TemporaryDirectory() as folder:
            made = [
                stage(method, metric, seed, Path(folder))
                for metric in ("harm", "accuracy", "over_refusal")
                for seed in range(SEEDS)
            ]
            before = time.process_time()
            for ensemble, context in made:
                ensemble.run(context)
            spent = time.process_time() - before
        print(f"{name}: {spent:.1f} s of CPU for {len(made)} ensembles of {MEMBERS} members (limit {LIMIT:g} s)")


if __name__ == "__main__":
    main()
