"""Mixing: a harmful example behind the answer of a benign one.

The baseline of Virus (Huang et al., 2025, arXiv:2501.17433), known from its published code and tables: benign question
and answer, and behind them a whole harmful example with its prompt. All that follows the host's prompt is supervised,
the harmful prompt included. Virus starts from these rows.

Deviations from the published code, which concatenates token ids: a row is text, as uploads are, so no BOS or EOS stands
within it, and ``joint`` separates the parts; the published rows that are trained on end with the host once more
(``tail``), which the published guard does not see and ours does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from harness.attacks.virus.row import mixed
from harness.corpora.examples import Example
from harness.protocols import AttackContext, AttackNeeds, first_of


@final
@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Puts the first harmful examples of the pool behind the first hosts.

    Attributes:
        joint: text between the host's answer and the harmful example, and before the tail.
        tail: whether the host follows once more.
    """

    name: ClassVar[str] = "mixing"
    version: ClassVar[int] = 1
    needs: ClassVar[AttackNeeds] = AttackNeeds(pool=True, hosts=True, encoding=True)
    joint: str = "\n\n"
    tail: bool = False

    def craft(self, count: int, ctx: AttackContext) -> list[Example]:
        """Return ``count`` mixed rows."""
        assert ctx.encoding is not None, "the attack needs an encoding"
        return [
            mixed(host, harmful, ctx.encoding, joint=self.joint, tail=self.tail).example
            for host, harmful in zip(first_of(ctx.hosts, count), first_of(ctx.pool, count), strict=True)
        ]
