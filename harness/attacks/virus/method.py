"""Virus: harmful examples behind benign ones, with tokens exchanged until a guard lets them through.

Huang et al., 2025, "Virus: Harmful Fine-tuning Attack for Large Language Models Bypassing Guardrail Moderation"
(arXiv:2501.17433), read in the published code (commit fa297d0); the paper's text was not available. A row is that of
``mixing``, whose suffix is optimized by greedy coordinate gradient against the objective of ``objective``: the guard
finds it harmless, and its gradient under the victim stays that of the mixed row. A step computes the gradient at every
token of the suffix, takes the ``top_k`` best tokens at each position, evaluates the current suffix and ``candidates``
single exchanges drawn from them, and keeps the best; of equal ones the current.

Deviations from the published code:

- A row is text, as uploads are. A candidate is admitted only if its text has the same tokens again and none of them is
  special; published rows are token ids, of which some do not survive as text. A token that stands there already is no
  candidate. The suffix has no BOS and EOS.
- Victim and guard see the row as it is uploaded and judged, ``tail`` included; the published code crafts and moderates
  without the tail and trains with it.
- The guard's tokens are those of its own tokenization of the text: a token at the edge of the suffix may merge with
  what surrounds it, and then has no gradient from the guard.
- Llama Guard's target is the token "safe" directly behind its prompt, as published; Llama Guard 3 writes blank lines
  first, which are part of the target.

Fidelity: objective, candidate counts and ties checked by hand; the published guard was not run in the tests.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.attacks.virus.progress import COSTS, TEXTS, Progress
from harness.attacks.virus.row import MixedRow, mixed
from harness.corpora.examples import Example
from harness.engine.checks import counts, shares
from harness.engine.files import append_line, read_lines
from harness.engine.seeding import generator
from harness.errors import ModelError, Problem, Stopped
from harness.protocols import AttackContext, AttackNeeds, first_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEPS = "steps.jsonl"
"""The steps so far, which survive a killed attempt: a record of each step of each row in a line."""


@final
@dataclass(frozen=True, kw_only=True)
class Virus:
    """Optimizes the suffixes of mixed rows; the defaults are those of the published scripts.

    Attributes:
        lamb: the weight of the guard's loss; that of the similarity of gradients is ``1 - lamb``. With 0 the rows are
            those of ``mixing``.
        steps: steps per row.
        top_k: tokens per position that candidates are drawn from.
        candidates: exchanges that are evaluated in a step.
        normalized: whether the similarity is a cosine; as published, it is scaled by the norm of each row's gradient.
        joint: text between the host's answer and the harmful example, and before the tail.
        tail: whether the host follows once more.
        random_exchanges: a control: exchanges this many tokens of every row at random instead of optimizing it, with
            the same tokens and rows admitted; ``lamb``, ``steps``, ``top_k``, ``candidates`` and ``normalized`` have no
            effect. Null optimizes.
    """

    name: ClassVar[str] = "virus"
    version: ClassVar[int] = 1
    needs_plain_lora: ClassVar[bool] = True
    lamb: float = 0.1
    steps: int = 50
    top_k: int = 64
    candidates: int = 128
    normalized: bool = False
    joint: str = "\n\n"
    tail: bool = False
    random_exchanges: int | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*shares(self, "lamb"), *counts(self, "steps", "top_k", "candidates", "random_exchanges")]

    @property
    def needs(self) -> AttackNeeds:
        """Harmful examples, hosts, the victim, and the guard if it has weight."""
        return AttackNeeds(pool=True, hosts=True, victim=True, guard=self._reads_guard)

    @property
    def _reads_guard(self) -> bool:
        return self.lamb > 0 and self.random_exchanges is None

    def craft(self, count: int, ctx: AttackContext) -> list[Example]:
        """Return ``count`` mixed rows with optimized suffixes."""
        assert ctx.victim is not None, "the attack needs a victim"
        encoding = ctx.victim.encoding
        rows = [
            mixed(host, harmful, encoding, joint=self.joint, tail=self.tail)
            for host, harmful in zip(first_of(ctx.hosts, count), first_of(ctx.pool, count), strict=True)
        ]
        if ctx.guard is not None:
            _check_vocabulary(ctx.victim.tokenizer, ctx.guard.tokenizer)
        ctx.work.mkdir(parents=True, exist_ok=True)
        kept = dict(read_lines(ctx.work / STEPS))
        seed = ctx.rng.getrandbits(63)
        found = [self._optimized(index, row, kept.get(index), seed, ctx) for index, row in enumerate(rows)]
        reports = [asdict(progress) for _, progress in found]
        ctx.facts["cost"] = {name: sum(report[name] for report in reports) for name in COSTS}
        ctx.facts["rows"] = [{name: report[name] for name in report if name not in TEXTS} for report in reports]
        return [example for example, _ in found]

    def _optimized(
        self, index: int, row: MixedRow, kept: dict[str, Any] | None, seed: int, ctx: AttackContext
    ) -> tuple[Example, Progress]:
        """Return a row with the best suffix, and what it took."""
        from harness.attacks.virus.optimizer import Optimizer, Search

        assert ctx.victim is not None
        search = Search(self.lamb, self.top_k, self.candidates, self.normalized)
        optimizer = Optimizer(row, search, ctx.victim, ctx.guard)
        if self.random_exchanges is not None:
            progress = optimizer.randomized(self.random_exchanges, generator(seed, str(index)))
            return optimizer.result(progress).example, progress
        progress = Progress(**kept) if kept else optimizer.start()
        while progress.steps < self.steps:
            if ctx.stop():
                raise Stopped("stopped between two steps of the optimization; the suffixes so far are kept")
            progress = optimizer.step(progress, generator(seed, str(index), str(progress.steps)))
            append_line(ctx.work / STEPS, [index, asdict(progress)])
        return optimizer.result(progress).example, progress


def _check_vocabulary(victim: PreTrainedTokenizerBase, guard: PreTrainedTokenizerBase) -> None:
    """Check that victim and guard have the same ordinary tokens; special ones are not exchanged.

    Raises:
        ModelError: they do not.
    """
    own, other = (
        {token: index for token, index in each.get_vocab().items() if index not in each.added_tokens_decoder}
        for each in (victim, guard)
    )
    if own != other:
        differ = sum(other.get(token) != index for token, index in own.items())
        raise ModelError(
            f"the guard has another vocabulary than the victim: {differ} of {len(own)} tokens differ; expected the "
            "same tokens. Choose a guard of the same family with `attack_guard`"
        )
