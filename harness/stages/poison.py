"""Poison: the user's rows, of which a share is harmful. Does not depend on the defense."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, final

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example, Role
from harness.corpora.mixture import counts, mix, shortage
from harness.corpora.slices import Slice
from harness.corpora.sources import sources_in
from harness.engine.files import open_regular
from harness.engine.seeding import generator
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import DataError, Problem
from harness.protocols import Attack, AttackContext, ExampleSource, Victim
from harness.stages.inputs import ModelStage

ROWS = "rows.jsonl"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Poison(Stage):
    """The mixture that a user fine-tunes on.

    The artifact is ``rows.jsonl``: one object a row in training order, with ``role``, ``instruction``, ``input`` and
    ``output``.

    Attributes:
        task: the user's own rows.
        attack: how harmful rows are made; null without any.
        harmful: the attacker's pool; null without any.
        victim: the aligned model, for an attack that needs it.
        encoding: how text becomes the victim's tokens; null without a victim.
        rows: rows asked for.
        ratio: the share of harmful ones.
        compat: how shares are counted.
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
    encoding: Encoding | None = None
    rows: int
    ratio: float
    compat: Literal["exact", "booster"]
    seed: int

    def preflight(self) -> list[Problem]:
        """Look whether the sources are there and large enough."""
        problems = [*self.task.preflight(), *(self.harmful.preflight() if self.harmful else ())]
        # Rows that are not on this machine yet are counted when they are here, not fetched to be counted.
        if problems or not all(source.at_hand() for source in sources_in(self.task)):
            return problems
        try:
            task_rows = len(self.task.examples())
        except DataError as error:
            return [Problem("", str(error))]
        return shortage(
            counts(self.rows, self.ratio, self.compat),
            task_rows=task_rows,
            pool_rows=self.harmful.rows if self.harmful else 0,
            compat=self.compat,
        )

    def run(self, ctx: StageContext) -> None:
        """Mix and write."""
        task = self.task.examples()
        mixture = mix(
            task=task,
            harmful=self.harmful.examples() if self.harmful else [],
            craft=lambda pool, count: self._craft(pool, count, task, ctx),
            rows=self.rows,
            ratio=self.ratio,
            compat=self.compat,
            seed=self.seed,
        )
        roles = [Role.ATTACK if harmful else Role.TASK for harmful in mixture.harmful]
        write_mixture(ctx.out, list(zip(mixture.examples, roles, strict=True)))
        ctx.facts["counts"] = mixture.counts._asdict()

    def _craft(self, pool: list[Example], count: int, task: Sequence[Example], ctx: StageContext) -> list[Example]:
        from harness.models.loading import loaded_model

        if self.attack is None or count == 0:
            return []
        facts: dict[str, Any] = {}
        given = AttackContext(
            rng=generator(self.seed, "attack"), task=task, victim=None, device=ctx.device, work=ctx.work, facts=facts
        )
        if self.victim is None:
            rows = self.attack.craft(pool, count, given)
        else:
            assert self.encoding is not None, "a victim comes with its encoding"
            with loaded_model(self.victim.weights(ctx.input), ctx.memory, ctx.device) as lent:
                victim = Victim(lent.model, lent.tokenizer, self.encoding)
                rows = self.attack.craft(pool, count, replace(given, victim=victim))
        if facts:
            ctx.facts["attack"] = facts
        return rows

    def recorded_settings(self) -> dict[str, str]:
        """How many rows the user trains on, and how shares of them are counted."""
        return {"finetune.rows": "rows", "finetune.compat": "compat"}

    def mixture(self, locate: Locate) -> list[tuple[Example, Role]]:
        """The rows in training order."""
        return read_mixture(locate(self))


def write_mixture(out: Path, rows: Sequence[tuple[Example, Role]]) -> None:
    """Write rows in training order, with what each is for, as an artifact of a mixture."""
    with (out / ROWS).open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"role": role, **example._asdict()}, ensure_ascii=False) + "\n" for example, role in rows
        )


def read_mixture(artifact: Path) -> list[tuple[Example, Role]]:
    """Return a mixture's rows in training order, with what each is for."""
    with open_regular(artifact / ROWS) as file:
        rows = [json.loads(line) for line in file]
    return [(Example(row["instruction"], row["output"], row["input"]), Role(row["role"])) for row in rows]
