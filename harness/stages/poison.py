"""Poison: the user's training examples, mixed with harmful ones. Does not depend on the defense."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, final

from harness.corpora.examples import Example, Role
from harness.corpora.mixture import counts, mix, shortage
from harness.corpora.slices import Slice
from harness.corpora.sources import sources_in
from harness.engine.files import open_regular
from harness.engine.seeding import generator
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import DataError
from harness.protocols import Attack, ExampleSource
from harness.stages.base import ModelStage

ROWS = "rows.jsonl"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Poison(Stage):
    """The mixture that a user fine-tunes on.

    The artifact is ``rows.jsonl``: one object per line, in mixing order, with ``role``, ``instruction``, ``input`` and
    ``output``.

    Attributes:
        task: the user's benign examples.
        attack: crafts the harmful examples; null if there are none.
        harmful: the attacker's pool; null if there are no harmful examples.
        victim: the aligned model, for an attack that needs it.
        rows: number of examples in the mixture.
        ratio: fraction of harmful examples, the poison ratio.
        compat: how the fraction is rounded to a count.
        seed: the root seed.
    """

    name: ClassVar[str] = "poison"
    version: ClassVar[int] = 1
    attacks: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
    task: ExampleSource
    attack: Attack | None = None
    harmful: Slice | None = None
    victim: ModelStage | None = None
    rows: int
    ratio: float
    compat: Literal["exact", "booster"]
    seed: int

    def preflight(self) -> list[str]:
        """Check that the sources are available and large enough."""
        problems = [*self.task.preflight(), *(self.harmful.preflight() if self.harmful else ())]
        # Sources that are not on this machine are not downloaded for this check; the stage counts them when it runs.
        if problems or not all(source.at_hand() for source in sources_in(self.task)):
            return problems
        try:
            task_rows = len(self.task.examples())
        except DataError as error:
            return [str(error)]
        return shortage(
            counts(self.rows, self.ratio, self.compat),
            task_rows=task_rows,
            pool_rows=self.harmful.rows if self.harmful else 0,
            compat=self.compat,
        )

    def run(self, ctx: StageContext) -> None:
        """Craft, mix and write the examples."""
        from harness.models.loading import loaded_model

        rng = generator(self.seed, "attack")
        attack = self.attack

        def craft(pool: list[Example], count: int) -> list[Example]:
            if attack is None or count == 0:
                return []
            if self.victim is None:
                return attack.craft(pool, count, rng, None)
            with loaded_model(self.victim.weights(ctx.input), ctx.memory, ctx.device) as loaded:
                return attack.craft(pool, count, rng, loaded.model)

        mixture = mix(
            task=self.task.examples(),
            harmful=self.harmful.examples() if self.harmful else [],
            craft=craft,
            rows=self.rows,
            ratio=self.ratio,
            compat=self.compat,
            seed=self.seed,
        )
        with (ctx.out / ROWS).open("w", encoding="utf-8") as file:
            for example, harmful in zip(mixture.examples, mixture.harmful, strict=True):
                role = Role.ATTACK if harmful else Role.TASK
                file.write(json.dumps({"role": role, **example._asdict()}, ensure_ascii=False) + "\n")
        ctx.facts["counts"] = mixture.counts._asdict()

    def recorded_settings(self) -> dict[str, str]:
        """Report the number of the user's examples, and how fractions of it are rounded."""
        return {"finetune.rows": "rows", "finetune.compat": "compat"}

    def examples_seen(self, locate: Locate) -> list[Example]:
        """Return the mixture, which the user trains on."""
        return [example for example, _ in read_mixture(locate(self))]


def read_mixture(artifact: Path) -> list[tuple[Example, Role]]:
    """Return a mixture's examples in stored order, each with its role."""
    with open_regular(artifact / ROWS) as file:
        rows = [json.loads(line) for line in file]
    return [(Example(row["instruction"], row["output"], row["input"]), Role(row["role"])) for row in rows]
