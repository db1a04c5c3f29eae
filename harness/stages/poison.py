"""Poison: the user's training examples, as an attack leaves them.

Does not depend on the defense, unless the attack reads the aligned model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, final

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example, Role
from harness.corpora.mixture import counts, mix, shortage
from harness.corpora.shards import Clients, Shards, divide, malicious_clients
from harness.corpora.slices import Slice
from harness.corpora.sources import sources_in
from harness.engine.files import open_regular
from harness.engine.seeding import generator
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import DataError, Problem
from harness.protocols import (
    Attack,
    AttackContext,
    ExampleSource,
    Judge,
    OpenedGuard,
    SelectsRows,
    SendsAlone,
    TrainedGuard,
    Victim,
    WhiteBoxGuard,
)
from harness.stages.base import Base
from harness.stages.inputs import ModelStage

ROWS = "rows.jsonl"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Poison(Stage):
    """The mixture that a user fine-tunes on.

    The artifact is ``rows.jsonl``: one object per line, in mixing order, with ``role``, ``instruction``, ``input``
    and ``output``, ``before`` where messages precede the instruction, and in a federation the ``client`` that holds
    the row.

    Attributes:
        task: the user's benign examples.
        attack: crafts the attacker's examples, or selects the user's; null if there is none.
        harmful: the attacker's pool; null for an attack that needs none.
        victim: the aligned model, for an attack that needs it.
        encoding: template and tokenization of the fine-tuning, for an attack that needs them or a victim.
        guard: the guard that an attack crafts against, for one that reads a guard's weights.
        guard_model: the guard's model, if a stage trains it.
        rows: number of examples in the mixture.
        ratio: fraction of the attacker's examples, the poison ratio.
        compat: how the fraction is rounded to a count.
        seed: the root seed.
        clients: the clients of a federation that hold the rows; null is one user.
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
    guard: Judge | TrainedGuard | None = None
    guard_model: Base | None = None
    clients: Clients | None = None

    def preflight(self) -> list[Problem]:
        """Check that the sources are available and large enough."""
        refusals = self.attack is not None and self.attack.needs.refusals
        pool = self.harmful.preflight(paired=refusals) if self.harmful else []
        guard = [Problem.of(stated).under("attack.guard") for stated in self.guard.preflight()] if self.guard else []
        problems = [*self.task.preflight(), *pool, *guard]
        # Sources that are not on this machine are not downloaded for this check; the stage counts them when it runs.
        if problems or not all(source.at_hand() for source in sources_in(self.task)):
            return problems
        try:
            task_rows = len(self.task.examples())
        except DataError as error:
            return [Problem("", str(error))]
        return shortage(
            counts(self.rows, self.ratio, self.compat),
            task_rows=task_rows,
            pool_rows=self.harmful.rows if self.harmful else None,
            compat=self.compat,
            **self._ways,
        )

    def run(self, ctx: StageContext) -> None:
        """Craft, mix and write the examples."""
        mixture = mix(
            task=self.task.examples(),
            harmful=self.harmful.examples() if self.harmful else None,
            craft=lambda pool, hosts, count: self._craft(pool, hosts, count, ctx),
            rows=self.rows,
            ratio=self.ratio,
            compat=self.compat,
            seed=self.seed,
            **self._ways,
        )
        roles = [Role.ATTACK if harmful else Role.TASK for harmful in mixture.harmful]
        owners = None
        if self.clients is not None:
            shards = divide(mixture.harmful, self.clients, self.seed)
            owners = shards.owners
            ctx.facts["malicious"] = sorted(shards.malicious)
        write_mixture(ctx.out, list(zip(mixture.examples, roles, strict=True)), owners)
        ctx.facts["counts"] = mixture.counts._asdict()

    @property
    def _ways(self) -> dict[str, bool]:
        """How the attack takes part in the mixture, as ``mix`` and ``shortage`` are told."""
        selects = isinstance(self.attack, SelectsRows)
        return {
            "hosts": self.attack is not None and self.attack.needs.hosts and not selects,
            "selects": selects,
            "alone": isinstance(self.attack, SendsAlone),
        }

    def _craft(self, pool: list[Example], hosts: list[Example], count: int, ctx: StageContext) -> list[Example]:
        if self.attack is None or count == 0:
            return []
        facts: dict[str, Any] = {}
        paired = self.harmful if self.attack.needs.refusals else None
        with self._victim(ctx) as victim:
            # After the victim: loading that one stops an inference server, whose memory the guard may need.
            context = AttackContext(
                rng=generator(self.seed, "attack"),
                pool=pool,
                refusals={row.instruction: row.output for row in paired.refusals()} if paired else {},
                hosts=hosts,
                victim=victim,
                encoding=self.encoding,
                guard=self._opened_guard(ctx),
                device=ctx.device,
                work=ctx.work,
                stop=ctx.stop,
                facts=facts,
            )
            crafted = self.attack.craft(count, context)
        if facts:
            ctx.facts["attack"] = facts
        return crafted

    @contextmanager
    def _victim(self, ctx: StageContext) -> Iterator[Victim | None]:
        from harness.models.loading import loaded_model

        if self.victim is None:
            yield None
            return
        assert self.encoding is not None, "a victim comes with its encoding"
        with loaded_model(self.victim.weights(ctx.input), ctx.memory, ctx.device) as loaded:
            yield Victim(loaded.model, loaded.tokenizer, self.encoding)

    def _opened_guard(self, ctx: StageContext) -> OpenedGuard | None:
        if self.guard is None:
            return None
        assert isinstance(self.guard, WhiteBoxGuard), "checked at composition"
        folder = ctx.input(self.guard_model) if self.guard_model else None
        return self.guard.opened(folder, device=ctx.device)

    def recorded_settings(self) -> dict[str, str]:
        """Report the number of the user's examples, and how fractions of it are rounded."""
        settings = {"finetune.rows": "rows", "finetune.compat": "compat"}
        return settings | ({"federation.clients": "clients.clients"} if self.clients else {})

    def mixture(self, locate: Locate) -> list[tuple[Example, Role]]:
        """Return the examples in training order, with their roles."""
        return read_mixture(locate(self))

    def shards(self, locate: Locate) -> Shards:
        """Return the client of each row, in training order."""
        assert self.clients is not None, "a mixture of one user has no clients"
        owners = [int(row["client"]) for row in _records(locate(self))]
        return Shards(owners, self.clients.clients, malicious_clients(self.clients, self.seed))


def write_mixture(out: Path, rows: Sequence[tuple[Example, Role]], owners: Sequence[int] | None = None) -> None:
    """Write examples and their roles, in training order, in the format that ``read_mixture`` reads.

    Args:
        out: folder of the artifact.
        rows: the examples and their roles.
        owners: the client of each row, in a federation.
    """
    held = [{} for _ in rows] if owners is None else [{"client": owner} for owner in owners]
    with (out / ROWS).open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"role": role, **client, **example.record()}, ensure_ascii=False) + "\n"
            for (example, role), client in zip(rows, held, strict=True)
        )


def read_mixture(artifact: Path) -> list[tuple[Example, Role]]:
    """Return a mixture's examples in stored order, each with its role."""
    return [(Example.of(row), Role(row["role"])) for row in _records(artifact)]


def _records(artifact: Path) -> list[dict[str, Any]]:
    with open_regular(artifact / ROWS) as file:
        return [json.loads(line) for line in file]
